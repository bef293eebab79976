"""Timing two things in turn, so that a machine's drift hits both alike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kftune.training.profile._results import Round

_BLOCK_SECONDS = 0.3
_SGD_SHARE = 3  # an SGD block has a third of the steps of the block beside it …
_SGD_STEPS = 5  # … but not fewer than these


@dataclass(frozen=True, kw_only=True)
class Block:
    """Steps that are timed in a row.

    Attributes:
        steps: how many, a multiple of ``group``.
        group: steps between two readings of the time, whole periods: the mean over a group has its share of the work
            that is not done in every step.
    """

    steps: int
    group: int


def period_of(params: Mapping[str, Any]) -> int:
    """The least common multiple of all periods, which are called ``*_every`` and count updates."""
    periods = [v for name, v in params.items() if name.endswith("_every") and type(v) is int and v > 0]
    return math.lcm(*periods)


def plan_block(*, steps: int | None, group: int, step_seconds: float) -> Block:
    """As many whole groups as hold ``steps``, or as last 0.3 seconds.

    Args:
        steps: the least number of steps; None to go by the time.
        group: whole periods.
        step_seconds: estimate of the time of a step.
    """
    wanted = steps if steps is not None else _BLOCK_SECONDS / max(step_seconds, 1e-9)
    return Block(steps=group * max(1, math.ceil(wanted / group)), group=group)


def plan_sgd_block(block: Block) -> Block:
    """A shorter one: there are two of them, and nothing in them is amortised."""
    steps = max(_SGD_STEPS, math.ceil(block.steps / _SGD_SHARE))
    group = min(block.group, steps)
    return Block(steps=group * math.ceil(steps / group), group=group)


class Stopwatch:
    """Times blocks of steps.

    Args:
        now: monotonic source of seconds.
        wait: returns when the device has done all that was queued.
    """

    def __init__(self, *, now: Callable[[], float], wait: Callable[[], None] = lambda: None) -> None:
        self._now = now
        self._wait = wait

    def seconds_per_step(self, step: Callable[[], None], block: Block) -> float:
        """The median over a block's groups of the mean seconds of a step.

        A step before the block that is not timed brings back to the caches what other work has driven out.
        """
        step()
        means = []
        for _ in range(block.steps // block.group):
            self._wait()
            before = self._now()
            for _ in range(block.group):
                step()
            self._wait()
            means.append((self._now() - before) / block.group)
        return statistics.median(means)

    def rounds(
        self,
        sgd: Callable[[], None],
        optimizer: Callable[[], None],
        *,
        n: int,
        block: Block,
        on_round: Callable[[], None] = lambda: None,
    ) -> tuple[Round, ...]:
        """SGD, optimizer, SGD, optimizer, …, SGD: n rounds, neighbours share the SGD block between them.

        Args:
            sgd: makes a step of the baseline.
            optimizer: makes a step of what is measured.
            n: number of rounds.
            block: the optimizer's.
            on_round: called after each.
        """
        sgd_block = plan_sgd_block(block)
        made = []
        before = self.seconds_per_step(sgd, sgd_block)
        for _ in range(n):
            middle = self.seconds_per_step(optimizer, block)
            after = self.seconds_per_step(sgd, sgd_block)
            made.append(Round(sgd_before=before, optimizer=middle, sgd_after=after))
            before = after
            on_round()
        return tuple(made)
