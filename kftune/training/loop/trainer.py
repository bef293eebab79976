"""One run: set-up, warm-up, then training under the clock with evaluations outside it."""

from __future__ import annotations

import contextlib
import copy
import math
import random
import statistics
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from kftune._targets import importable_from
from kftune.errors import CurvatureError, DivergenceError
from kftune.optim import OPTIMIZERS, ModelOptimizer
from kftune.problems import Problem, Split, problem_loader
from kftune.results import BATCH_PARAMETERS, CurvePoint, Outcome, RunResult, RunSpec
from kftune.training.coverage import parameters_by_treatment
from kftune.training.data.batches import BatchSizes, ShuffledIndices
from kftune.training.host import device_name, peak_memory_bytes, reset_peak_memory
from kftune.training.loop.calibration import SpeedGauge
from kftune.training.loop.clock import Clock
from kftune.training.loop.evaluation import measure, random_state_kept
from kftune.training.loop.hyperparameters import split_by_owner
from kftune.training.loop.memory import exception_line, is_out_of_memory, limited_memory, release_memory
from kftune.training.loop.schedules import Progress, Schedules

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PrunedError", "Training", "train"]

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_RECENT_STEPS = 15  # whose median predicts the next step


class PrunedError(Exception):
    """The run was told not to go on; its message is the result's."""


def train(
    spec: RunSpec,
    on_point: Callable[[CurvePoint], None] = lambda point: None,
    *,
    goes_on: Callable[[CurvePoint], bool] = lambda point: True,
) -> RunResult:
    """Train one run to the end of its budget.

    Args:
        spec: what to train.
        on_point: called with every point of the curve as soon as it is measured.
        goes_on: asked after an evaluation whether the run may go on, where it would otherwise: never at its last point.

    Returns:
        The result; whatever the configuration or the user's own code did wrong is its outcome, not an exception.
    """
    try:
        return _train(Training(spec, on_point, goes_on=goes_on))
    finally:
        release_memory()  # others may have their turn on the device now


def _train(training: Training) -> RunResult:
    spec = training.spec
    try:
        with importable_from(spec.module_dir), limited_memory(training.device, share=spec.memory_share):
            training.set_up()
            training.warm_up()
            training.run()
    except (DivergenceError, CurvatureError) as error:
        return training.result(Outcome.DIVERGED, str(error))
    except PrunedError as error:
        return training.result(Outcome.PRUNED, str(error))
    except SystemExit:  # of code that was meant to be a program of its own
        return training.result(Outcome.CRASHED, traceback.format_exc())
    except Exception as error:  # noqa: BLE001 - anything a user's model raises becomes the run's recorded outcome
        if is_out_of_memory(error):
            return training.result(Outcome.OUT_OF_MEMORY, exception_line(error))
        return training.result(Outcome.CRASHED, traceback.format_exc())
    return training.result(Outcome.COMPLETED)


class Training:
    """The state of one run. :func:`train` drives it; tests may drive it step by step."""

    problem: Problem
    model: nn.Module
    optimizer: ModelOptimizer

    def __init__(
        self,
        spec: RunSpec,
        on_point: Callable[[CurvePoint], None],
        *,
        goes_on: Callable[[CurvePoint], bool] = lambda point: True,
    ) -> None:
        if (spec.budget_seconds is None) == (spec.budget_updates is None):
            raise ValueError("exactly one of budget_seconds and budget_updates must be given")
        self.spec = spec
        self.device = torch.device(spec.device)
        self.clock = Clock(self.device)
        self.curve: list[CurvePoint] = []
        self.updates = 0
        self.examples = 0
        self._on_point = on_point
        self._goes_on = goes_on
        self._wall = dict.fromkeys(("setup", "warmup", "evaluation"), 0.0)
        self._overshoot_seconds = 0.0
        self._gauge: SpeedGauge | None = None
        self._treatments: Mapping[str, int] | None = None
        names = ("init", "order", "optimizer", "evaluation")
        seeds = np.random.SeedSequence(spec.seed).generate_state(len(names))
        self._seeds = {name: int(seed) for name, seed in zip(names, seeds, strict=True)}

    def set_up(self) -> None:
        """Load the problem, make model and optimizer, and measure the untrained model."""
        spec = self.spec
        reset_peak_memory(self.device)
        with self._outside_the_clock("setup"):
            dtype = _DTYPES[spec.dtype]
            load = problem_loader(spec.problem)
            self.problem = load(
                device=self.device, dtype=dtype, data_dir=Path(spec.data_dir), **dict(spec.problem_args)
            )
            torch.manual_seed(self._seeds["init"])
            self.model = self.problem.make_model().to(device=self.device, dtype=dtype)
            params, loop = split_by_owner(OPTIMIZERS.get(spec.optimizer), spec.params)
            sizes = {name: _optional_int(loop.pop(name, None)) for name in BATCH_PARAMETERS}
            self.batch_sizes = BatchSizes(**sizes, micro_limit=spec.micro_batch, n_train=len(self.problem.train))
            self.optimizer = self._build_optimizer(self.model, params)
            self._treatments = parameters_by_treatment(self.model, self.optimizer)
            self.schedules = Schedules(self.optimizer, loop)
            self.indices = ShuffledIndices(len(self.problem.train), seed=self._seeds["order"], device=self.device)
            self._train_subset = _first(self.problem.train, spec.train_examples)
        self.evaluate()

    def _build_optimizer(self, model: nn.Module, params: dict[str, Any]) -> ModelOptimizer:
        self._optimizer_params = params
        return OPTIMIZERS.get(self.spec.optimizer).build(
            model, likelihood=self.problem.likelihood, seed=self._seeds["optimizer"], params=params
        )

    def warm_up(self) -> None:
        """One update of a throw-away copy, so that allocations and kernel choices are made before the clock starts.

        The run's model, optimizer, data order and random state are as if it had not happened.
        """
        with self._outside_the_clock("warmup"), random_state_kept(self.device):
            model = copy.deepcopy(self.model).train()
            optimizer = self._build_optimizer(model, self._optimizer_params)
            indices = torch.arange(self.batch_sizes.micro, device=self.device)
            # The run itself will meet these under the clock, where they are a result.
            with contextlib.suppress(DivergenceError, CurvatureError):
                optimizer.step(self._closure(model, indices))

    def run(self) -> None:
        """Update until the next step is predicted to end past the budget; evaluate on schedule.

        The machine's speed is measured at the start, at evaluations, and at the end; the seconds count as evaluation.

        Raises:
            DivergenceError: a loss or gradient is not finite, or the test loss is not.
            CurvatureError: a factor could not be inverted.
            PrunedError: it was told not to go on.
        """
        self.optimizer.phases = self.clock
        self.model.train()
        self._measure_speed(0.0, always=True)
        due = self._evaluation_marks()
        recent: deque[float] = deque(maxlen=_RECENT_STEPS)
        before = self.clock.seconds()
        while self._may_start(before, recent):
            self.clock.resume()
            try:
                self._step(before)
            finally:
                now = self.clock.pause()
            recent.append(now - before)
            before = now
            if self._progress(now) >= due[0]:
                while self._progress(now) >= due[0]:
                    due.popleft()
                self.evaluate()
                self._measure_speed(now)
                if self._may_start(now, recent):  # a run that has used its budget is complete, however good it is
                    self._ask_to_go_on()
        if self.spec.budget_seconds is not None:
            self._overshoot_seconds = max(0.0, before - self.spec.budget_seconds)
        if self.curve[-1].update != self.updates:
            self.evaluate()
        self._measure_speed(before, always=True)

    def _ask_to_go_on(self) -> None:
        point = self.curve[-1]
        with self._outside_the_clock("evaluation"):
            if not self._goes_on(point):
                raise PrunedError(f"it had fallen behind after {point.train_seconds:.3g} s, {point.update} updates")

    def _measure_speed(self, train_seconds: float, *, always: bool = False) -> None:
        """Add to the calibration; unless ``always``, if that costs little."""
        with self._outside_the_clock("evaluation"):
            if self._gauge is None:
                self._gauge = SpeedGauge(self.device)
            if always:
                self._gauge.measure(train_seconds)
            else:
                self._gauge.measure_if_cheap(train_seconds)

    def _may_start(self, seconds: float, recent: deque[float]) -> bool:
        if self.spec.budget_updates is not None:
            return self.updates < self.spec.budget_updates
        budget = self.spec.budget_seconds or 0.0
        return seconds + (statistics.median(recent) if recent else 0.0) <= budget

    def _progress(self, seconds: float) -> float:
        """Share of the budget used."""
        if self.spec.budget_updates is not None:
            return self.updates / self.spec.budget_updates
        return seconds / (self.spec.budget_seconds or math.inf)

    def _evaluation_marks(self) -> deque[float]:
        """Shares of the budget after which an evaluation is due; the last one is made at the end in any case."""
        n = self.spec.n_evaluations
        return deque([*(k / n for k in range(1, n)), math.inf])

    def _step(self, train_seconds: float = 0.0) -> None:
        """One update, under the clock, which stood at ``train_seconds``."""
        if self.schedules:
            epochs = self.examples / len(self.problem.train)
            self.schedules.set(Progress(share=self._progress(train_seconds), updates=self.updates, epochs=epochs))
        *others, last = self.batch_sizes.of_update(self.updates)
        for size in others:
            self.optimizer.accumulate(self._next_closure(size))
        self.optimizer.step(self._next_closure(last))
        self.examples += self.batch_sizes.effective(self.updates)
        self.updates += 1

    def _next_closure(self, size: int) -> Callable[[], tuple[Tensor, Tensor]]:
        with self.clock.phase("data"):
            return self._closure(self.model, self.indices.take(size))

    def _closure(self, model: nn.Module, indices: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        inputs = self.problem.train.inputs.index_select(0, indices)
        same = self.problem.train.targets is self.problem.train.inputs
        targets = inputs if same else self.problem.train.targets.index_select(0, indices)

        def closure() -> tuple[Tensor, Tensor]:
            output = model(inputs)
            return self.problem.loss(output, targets), output

        return closure

    def evaluate(self) -> None:
        """Add a point to the curve; the clock stands still.

        Raises:
            DivergenceError: the test loss is not finite (the point is kept).
        """
        with self._outside_the_clock("evaluation"):
            self.model.eval()
            # Every evaluation draws the same numbers, and training none that depend on how often it is evaluated.
            with random_state_kept(self.device, self.model), self.optimizer.evaluation_parameters():
                _seed(self._seeds["evaluation"])
                train_loss, _ = self._measure(self._train_subset)
                test_loss, accuracy = self._measure(self.problem.test)
            self.model.train()
            point = CurvePoint(
                train_seconds=self.clock.seconds(),
                update=self.updates,
                train_loss=train_loss,
                test_loss=test_loss,
                accuracy=accuracy,
                readings=self.optimizer.readings(),
            )
            self.curve.append(point)
            self._on_point(point)
        if not math.isfinite(test_loss):
            raise DivergenceError(f"the test loss is {test_loss} after {self.updates} updates")

    def _measure(self, split: Split) -> tuple[float, float | None]:
        """Mean loss and accuracy over a split."""
        return measure(
            self.model, self.problem, split, dtype=_DTYPES[self.spec.dtype], micro_batch=self.spec.micro_batch
        )

    def result(self, outcome: Outcome, message: str = "") -> RunResult:
        """What became of the run, up to now."""
        return RunResult(
            outcome=outcome,
            message=message,
            curve=tuple(self.curve),
            train_seconds=self.clock.seconds(),
            overshoot_seconds=self._overshoot_seconds,
            evaluation_seconds=self._wall["evaluation"],
            setup_seconds=self._wall["setup"],
            warmup_seconds=self._wall["warmup"],
            phase_seconds=self.clock.phase_seconds(),
            updates=self.updates,
            examples=self.examples,
            peak_memory_bytes=peak_memory_bytes(self.device),
            device_name=device_name(self.device),
            calibration=self._gauge.calibration() if self._gauge is not None else None,
            treatments=self._treatments,
        )

    @property
    def _cuda(self) -> bool:
        return self.device.type == "cuda"

    @contextlib.contextmanager
    def _outside_the_clock(self, kind: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
            if self._cuda:
                torch.cuda.synchronize(self.device)
        finally:
            self._wall[kind] += time.perf_counter() - started


def _first(split: Split, n: int) -> Split:
    """A fixed subset (problems come shuffled or in a class-balanced order)."""
    if n >= len(split):
        return split
    inputs = split.inputs[:n]
    return Split(inputs, inputs if split.targets is split.inputs else split.targets[:n])


def _seed(seed: int) -> None:
    """Of everything that a model may draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _optional_int(value: Any) -> int | None:
    return None if value is None else int(value)
