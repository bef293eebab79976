"""What goes into a run and what comes out of it: plain data without torch, to cross processes and be stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from kftune.space import Value
from kftune.wording import cut, plain_text

__all__ = [
    "BATCH_PARAMETERS",
    "LOOP_PARAMETERS",
    "PHASES",
    "SCHEDULE_PARAMETERS",
    "Calibration",
    "CurvePoint",
    "Outcome",
    "RunResult",
    "RunSpec",
]

PHASES = ("data", "forward_backward", "statistics", "inversion", "preconditioning", "update", "other")
"""Parts of the training clock; they add up to ``train_seconds``."""

_LONGEST_MESSAGE = 20_000  # characters

BATCH_PARAMETERS = ("batch_size", "effective_batch_size", "accumulation", "full_batch_at")
SCHEDULE_PARAMETERS = (
    "schedule",
    "warmup",
    "final_lr",
    "decay_share",
    "milestones",
    "step_factor",
    "schedule_by",
    "damping_schedule",
    "final_damping",
    "weight_decay_schedule",
    "final_weight_decay",
    "momentum_growth",
    "momentum_growth_rate",
    "momentum_growth_start",
)
LOOP_PARAMETERS = (*BATCH_PARAMETERS, *SCHEDULE_PARAMETERS)
"""Hyperparameters of the training loop, not of the optimizer; see :class:`kftune.training.data.batches.BatchSizes` and
:class:`kftune.training.loop.schedules.Schedules`."""


class Outcome(StrEnum):
    """How a run ended. The first three and ``timed_out`` are results of the configuration; see DESIGN of budgets."""

    COMPLETED = "completed"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    TIMED_OUT = "timed_out"
    CRASHED = "crashed"
    PRUNED = "pruned"


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """All that a worker needs to train one run.

    Attributes:
        problem: registry name, or a target (``package.module:attribute``).
        problem_args: the problem's own arguments.
        optimizer: registry name, or a target.
        params: resolved hyperparameters, ``batch_size`` and ``effective_batch_size`` included if they are set.
        budget_seconds: train seconds; exactly one of this and ``budget_updates`` is given.
        budget_updates: parameter updates.
        seed: fixes initial weights and data order; the same for repeat r of every trial of every optimizer.
        device: ``"cpu"`` or ``"cuda:i"``.
        dtype: ``"float32"`` or ``"float64"``.
        threads: torch threads of the worker.
        data_dir: where dataset files are.
        module_dir: where modules of targets are looked for besides the installed ones; nowhere if empty.
        n_evaluations: points on the curve after the one at update 0.
        train_examples: size of the fixed training subset on which the train loss is measured.
        micro_batch: most examples in one forward pass, whatever ``params`` says; larger batches are accumulated.
        memory_share: how much of the memory that is available it may take; None for all.
        is_judged: whether to wait after each evaluation but the first and the last for a verdict whether to go on.
    """

    problem: str
    optimizer: str
    params: Mapping[str, Value]
    seed: int
    problem_args: Mapping[str, Any] = field(default_factory=dict)
    budget_seconds: float | None = None
    budget_updates: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    data_dir: str = ""
    module_dir: str = ""
    n_evaluations: int = 20
    train_examples: int = 2000
    memory_share: float | None = None
    micro_batch: int | None = None
    is_judged: bool = False


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One evaluation.

    Attributes:
        train_seconds: reading of the training clock.
        update: updates made before it.
        train_loss: mean over the training examples that are evaluated.
        test_loss: mean over the test examples.
        accuracy: share of correct test predictions; None where it has no meaning.
        readings: what the optimizer says of itself since the point before, by name: ``lr``, ``damping``, ``momentum``,
            ``kl_clip_active`` (share of the updates that the clip shortened), ….
    """

    train_seconds: float
    update: int
    train_loss: float
    test_loss: float
    accuracy: float | None = None
    readings: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How fast the machine was during a run: the seconds of a short reference workload, measured outside the clock.

    Attributes:
        train_seconds: readings of the training clock at which it was measured, the first 0, the last the run's end.
        seconds: the workload's wall seconds at each of them.
        reference: its usual seconds on this device, in the runner's opinion; None if there was none.
    """

    train_seconds: tuple[float, ...]
    seconds: tuple[float, ...]
    reference: float | None = None

    @cached_property
    def slowdown(self) -> float | None:
        """How many times slower than usual the machine was, on average over the run; None without a reference."""
        if self.reference is None or not self.seconds:
            return None
        mean = _mean_over(self.train_seconds, self.seconds)
        return mean / self.reference


def _mean_over(x: tuple[float, ...], y: tuple[float, ...]) -> float:
    """Mean of y over x by the trapezoidal rule."""
    length = x[-1] - x[0]
    if length <= 0:
        return sum(y) / len(y)
    pairs = zip(x, x[1:], y, y[1:], strict=False)
    return sum((b - a) * (c + d) / 2 for a, b, c, d in pairs) / length


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What became of a run.

    Attributes:
        outcome: how it ended.
        message: why, for people; empty if completed. Holds the user's traceback if their code raised. What no file,
            terminal or database takes is escaped in it (:func:`kftune.wording.plain_text`), and of a very long one the
            beginning and the end are kept.
        curve: evaluations in order; the first is the untrained model's (update 0), unless the run ended before it.
        train_seconds: reading of the training clock at the end.
        overshoot_seconds: how far the last step went past ``budget_seconds`` (0 if it did not).
        evaluation_seconds: wall seconds in evaluations, and of measuring the machine's speed beside them.
        setup_seconds: wall seconds of loading data, building model and optimizer.
        warmup_seconds: wall seconds of the warm-up before the clock.
        phase_seconds: see :data:`PHASES`; adds up to ``train_seconds``.
        updates: parameter updates made.
        examples: training examples processed by them.
        peak_memory_bytes: of the device for CUDA, of the process (resident) for CPU; None if unknown.
        device_name: e.g. the GPU's or CPU's model.
        calibration: how fast the machine was; None if that was not measured.
        treatments: what the optimizer does to the parameters (its ``coverage()``) → how many scalars; None if the run
            ended before there was an optimizer, or comes from a kftune that did not store it.
    """

    outcome: Outcome
    message: str = ""
    curve: tuple[CurvePoint, ...] = ()
    train_seconds: float = 0.0
    overshoot_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    setup_seconds: float = 0.0
    warmup_seconds: float = 0.0
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    updates: int = 0
    examples: int = 0
    peak_memory_bytes: int | None = None
    device_name: str = ""
    calibration: Calibration | None = None
    treatments: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        # Here is where the text of anyone's exception comes in; everything behind relies on it.
        object.__setattr__(self, "message", cut(plain_text(self.message), _LONGEST_MESSAGE))
