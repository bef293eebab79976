"""Measuring one optimizer after another against torch's SGD."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from kftune.errors import KftuneError, UsageError
from kftune.optim import OPTIMIZERS, ModelOptimizer, OptimizerEntry
from kftune.optim.costs.operations import forward_backward
from kftune.optim.costs.sizes import LayerSize
from kftune.optim.interface import Phase
from kftune.results import PHASES
from kftune.space import Value
from kftune.training.loop.clock import Clock
from kftune.training.profile._memory import peak_allocated_bytes
from kftune.training.profile._results import Contestant, OptimizerProfile, Profile, ProfileSpec, Progress, Quartiles
from kftune.training.profile._timing import Block, Stopwatch, period_of, plan_block, plan_sgd_block
from kftune.training.profile._workload import Workload, machine

_WARM_UP_STEPS = 5  # the first ones allocate, and gather and invert everything
_MEMORY_STEPS = 3
_CUDA_GROUP = 10  # steps between two readings at least: waiting for the device after each would forbid to queue work
_LIKELY_RATIO = 3.0  # of a method without a floor, for the time left
_LIKELY_OVER_FLOOR = 1.5
_NOT_HYPERPARAMETERS = {"model", "likelihood", "seed"}


def profile(spec: ProfileSpec, on_progress: Callable[[Progress], None] = lambda progress: None) -> Profile:
    """Measure the step of every contestant as a multiple of that of :class:`torch.optim.SGD` (Nesterov).

    Every contestant gets ``rounds`` blocks of steps, with blocks of SGD steps before and after each: a ratio is the
    optimizer's block over the mean of the two SGD blocks at its side. A block holds whole periods (the least common
    multiple of all ``*_every``), so that what is not done in every step is in it with its share, and its value is the
    median over groups of whole periods of the mean time of a step. Warm-up schedules of the periods are off
    (``warmup_updates=0``, unless set). The phases come from one more block under the training clock, which would slow
    the others; peak memory from three updates of another copy with every period 1, so that each does everything.

    Args:
        spec: what to measure.
        on_progress: called before each contestant and after each round.

    Raises:
        UsageError: an unknown problem or optimizer, missing data, a batch size beyond the training set, or a required
            contestant that cannot be built.
    """
    entries = [OPTIMIZERS.get(contestant.optimizer) for contestant in spec.contestants]
    with _threads(spec.threads):
        workload = Workload(spec)
        runner = _Runner(spec, workload)
        plans = [runner.plan(*pair) for pair in zip(spec.contestants, entries, strict=True)]
        optimizers = tuple(
            runner.measure(plan, partial(runner.report, on_progress, plans, i)) for i, plan in enumerate(plans)
        )
        return runner.result(optimizers)


@dataclass(frozen=True)
class _Plan:
    """What a contestant will do."""

    contestant: Contestant
    entry: OptimizerEntry
    params: dict[str, Any]
    period: int
    floor_flops: Mapping[Phase, float] | None
    likely_seconds: float

    def build(self, workload: Workload, **changed: Any) -> tuple[ModelOptimizer, Callable[[], None]]:
        """The optimizer over a fresh model, and a step of it."""
        model = workload.make_model()
        params = self.params | changed
        optimizer = self.entry.build(model, likelihood=workload.problem.likelihood, params=params)
        return optimizer, workload.optimizer_step(model, optimizer)


class _Runner:
    """The baseline, and what is measured against it."""

    def __init__(self, spec: ProfileSpec, workload: Workload) -> None:
        self._spec = spec
        self._workload = workload
        self._stopwatch = Stopwatch(now=time.perf_counter, wait=workload.wait)
        self._layers = workload.layers()
        self._sgd_flops = forward_backward(self._layers)
        self._sgd = workload.sgd_step(workload.make_model())
        self._sgd_seconds = self._estimate(self._sgd)
        self._sgd_peak = peak_allocated_bytes(self._sgd_updates, workload.device)

    def _sgd_updates(self) -> None:
        step = self._workload.sgd_step(self._workload.make_model())
        for _ in range(_MEMORY_STEPS):
            step()

    def _estimate(self, step: Callable[[], None]) -> float:
        """Warm up, and how long a step takes then."""
        for _ in range(_WARM_UP_STEPS):
            step()
        return self._stopwatch.seconds_per_step(step, Block(steps=_WARM_UP_STEPS, group=1))

    def plan(self, contestant: Contestant, entry: OptimizerEntry) -> _Plan:
        """What is known before it runs; a required one that cannot be built is refused."""
        params = complete_params(entry, contestant.params)
        period = period_of(params)
        floor = entry.floor(self._layers, params) if entry.floor is not None and self._layers else None
        ratio = _LIKELY_RATIO if floor is None else _LIKELY_OVER_FLOOR * floor_multiple(self._layers, floor)
        likely = self._seconds_in_all(period, ratio * self._sgd_seconds)
        plan = _Plan(contestant, entry, params, period, floor, likely)
        if contestant.required:
            try:
                plan.build(self._workload)
            except ValueError as error:
                raise UsageError(f"{contestant.label}: {error}") from None
        return plan

    def _block(self, period: int, step_seconds: float) -> Block:
        least = _CUDA_GROUP if self._workload.device.type == "cuda" else 1
        group = period * math.ceil(least / period)
        return plan_block(steps=self._spec.steps, group=group, step_seconds=step_seconds)

    def _seconds_in_all(self, period: int, step_seconds: float) -> float:
        block = self._block(period, step_seconds)
        sgd_steps = (self._spec.rounds + 1) * plan_sgd_block(block).steps
        own_steps = (self._spec.rounds + 1) * block.steps + 2 * _WARM_UP_STEPS + _MEMORY_STEPS
        return own_steps * step_seconds + sgd_steps * self._sgd_seconds

    def report(self, on_progress: Callable[[Progress], None], plans: Sequence[_Plan], i: int, left: float) -> None:
        """Say that contestant ``i`` needs about ``left`` seconds more, and so what all need."""
        likely = [plan.likely_seconds for plan in plans]
        on_progress(Progress(plans[i].contestant.label, sum(likely), left + sum(likely[i + 1 :])))

    def measure(self, plan: _Plan, on_left: Callable[[float], None]) -> OptimizerProfile:
        """One contestant's numbers, or why there are none."""
        on_left(plan.likely_seconds)
        blank = OptimizerProfile(
            label=plan.contestant.label, optimizer=plan.entry.name, params=plan.params, period=plan.period
        )
        if plan.floor_flops is not None:
            floor = floor_multiple(self._layers, plan.floor_flops)
            blank = replace(blank, floor=floor, floor_flops=plan.floor_flops)
        try:
            return self._measured(plan, blank, on_left)
        # What a method refuses (a network that it cannot treat, a step that diverges, too little memory) is a result.
        except (KftuneError, ValueError, RuntimeError, MemoryError) as error:
            return replace(blank, failure=_in_a_line(error))
        finally:
            if self._workload.device.type == "cuda":
                torch.cuda.empty_cache()

    def _measured(self, plan: _Plan, blank: OptimizerProfile, on_left: Callable[[float], None]) -> OptimizerProfile:
        peak = peak_allocated_bytes(lambda: self._busy_updates(plan), self._workload.device)
        optimizer, step = plan.build(self._workload)
        step_seconds = self._estimate(step)
        block = self._block(plan.period, step_seconds)
        in_all, n = self._seconds_in_all(plan.period, step_seconds), self._spec.rounds
        done = 0

        def on_round() -> None:
            nonlocal done
            done += 1
            on_left(in_all * (n + 1 - done) / (n + 1))

        rounds = self._stopwatch.rounds(self._sgd, step, n=n, block=block, on_round=on_round)
        return replace(
            blank,
            steps=block.steps,
            sgd_steps=plan_sgd_block(block).steps,
            rounds=rounds,
            phases=self._phases(optimizer, step, block.steps),
            peak_memory_bytes=peak,
        )

    def _busy_updates(self, plan: _Plan) -> None:
        periods = {name: 1 for name, v in plan.params.items() if name.endswith("_every") and type(v) is int}
        _, step = plan.build(self._workload, **periods)
        for _ in range(_MEMORY_STEPS):
            step()

    def _phases(self, optimizer: ModelOptimizer, step: Callable[[], None], n_steps: int) -> dict[str, float]:
        """Seconds by phase of an average step."""
        clock = Clock(self._workload.device)
        optimizer.phases = clock
        clock.resume()
        for _ in range(n_steps):
            step()
        clock.pause()
        seconds = clock.phase_seconds()
        return {name: seconds[name] / n_steps for name in PHASES if name != "data"}

    def result(self, optimizers: tuple[OptimizerProfile, ...]) -> Profile:
        """Everything together."""
        sgd = [s for each in optimizers for r in each.rounds for s in (r.sgd_before, r.sgd_after)]
        return Profile(
            spec=self._spec,
            machine=machine(self._workload.device),
            layers=self._layers,
            n_parameters=self._workload.n_parameters,
            sgd_step_seconds=Quartiles.of(sgd or [self._sgd_seconds]).median,
            sgd_peak_memory_bytes=self._sgd_peak,
            sgd_flops=self._sgd_flops,
            optimizers=optimizers,
        )


def complete_params(entry: OptimizerEntry, given: Mapping[str, Value]) -> dict[str, Any]:
    """``given`` over the constructor's defaults; what has none is taken from the entry's example.

    A schedule that lets the periods grow is off (``warmup_updates=0``) unless it is given.
    """
    params = {}
    for name, argument in inspect.signature(entry.cls).parameters.items():
        if name in _NOT_HYPERPARAMETERS or argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            continue
        if argument.default is not inspect.Parameter.empty:
            params[name] = argument.default
        elif name in entry.example:
            params[name] = entry.example[name]
    if "warmup_updates" in params:
        params["warmup_updates"] = 0
    return params | dict(given)


def floor_multiple(layers: Sequence[LayerSize], floor: Mapping[Phase, float]) -> float:
    """(6·Σ n_rows·d_A·d_G + the method's own operations) as a multiple of the former."""
    base = forward_backward(layers)
    return (base + sum(floor.values())) / base


@contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_a_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, KftuneError | ValueError) and text else f"{type(error).__name__}: {text}"
