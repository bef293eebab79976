"""Hyperparameters that change from update to update, for any optimizer: learning rate, damping, weight decay, momentum.

==================  ============================================================================================
``schedule``        factor on the first value, t the share of the budget after the warm-up, f the final ratio
==================  ============================================================================================
``constant``        1
``linear``          1 − (1 − f)·t
``cosine``          f + (1 − f)·(1 + cos πt)/2 (Loshchilov & Hutter 2017, eq. 5, without restarts)
``wsd``             1 up to t = 1 − d, then linear to f: warm-up, stable, decay (Zhai et al. 2022; Hu et al. 2024)
``step``            c^m after m milestones (as in He et al. 2016)
warm-up             s/w for a share s < w of the budget (Goyal et al. 2017, section 2.2)
==================  ============================================================================================

A share is of the run's own budget, in seconds or updates alike, so a run that is given three times the budget decays
over all of it. ``schedule_by`` counts the warm-up and milestones in updates or in epochs instead, as papers do.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from kftune._targets import load_target
from kftune.errors import UsageError, suggestion
from kftune.results import SCHEDULE_PARAMETERS

if TYPE_CHECKING:
    import torch

__all__ = [
    "MOMENTUM_GROWTHS",
    "MOMENTUM_GROWTH_STARTS",
    "SCHEDULES",
    "TIED_SCHEDULES",
    "UNITS",
    "MomentumGrowth",
    "MomentumGrowthStart",
    "Progress",
    "Schedules",
    "momentum_after",
    "schedule_factor",
]

MomentumGrowth: TypeAlias = Literal["constant", "linear", "exponential", "one_minus_inverse"]
MOMENTUM_GROWTHS: tuple[str, ...] = get_args(MomentumGrowth)
MomentumGrowthStart: TypeAlias = Literal["second_update", "first_update"]
MOMENTUM_GROWTH_STARTS: tuple[str, ...] = get_args(MomentumGrowthStart)
SCHEDULES = ("constant", "linear", "cosine", "wsd", "step")
TIED_SCHEDULES = ("with_lr", *SCHEDULES)
UNITS = ("share", "updates", "epochs")

_DECAY_SHARE = 0.2
_STEP_FACTOR = 0.1
_VIRTUAL_STEPS = 1000

# Not 0, for which torch's optimizers (and kftune's) keep no velocity; a product with it is lost in any sum.
_ALMOST_ZERO = 1e-300

_GROWTHS: Mapping[str, Callable[[int, float], float]] = {
    "constant": lambda k, rate: 1.0,
    "linear": lambda k, rate: 0.05 * k * rate,
    "exponential": lambda k, rate: 1 - math.exp(-0.1 * k * rate),
    "one_minus_inverse": lambda k, rate: 1 - 1 / (k + 1),
}


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run has come before an update.

    Attributes:
        share: of its budget, in [0, 1].
        updates: made.
        epochs: examples processed, over the number of training examples.
    """

    share: float
    updates: int = 0
    epochs: float = 0.0


def momentum_after(k: int, *, growth: str, rate: float, largest: float) -> float:
    """The momentum of the update that follows ``k`` others.

    ``linear`` min(0.05·k·rate, largest), ``exponential`` min(1 − exp(−0.1·k·rate), largest), ``one_minus_inverse``
    min(1 − 1/(k + 1), largest), ``constant`` largest (Ulbæk 2022, section 5; the third is Martens & Grosse's 2015).

    Args:
        k: updates made, from 0.
        growth: one of :data:`MOMENTUM_GROWTHS`.
        rate: speed of ``linear`` and ``exponential``.
        largest: what it grows to.
    """
    return min(_GROWTHS[growth](k, rate), largest)


def schedule_factor(
    schedule: str,
    share: float,
    *,
    final: float = 0.0,
    decay_share: float = _DECAY_SHARE,
) -> float:
    """The factor at a share of the time after the warm-up; see the table of this module.

    Args:
        schedule: ``constant``, ``linear``, ``cosine`` or ``wsd``.
        share: t, in [0, 1].
        final: f, the factor at the end.
        decay_share: d, in (0, 1]; of ``wsd``.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return final + (1 - final) * (1 + math.cos(math.pi * share)) / 2
    begun = share if schedule == "linear" else max(0.0, share - (1 - decay_share)) / decay_share
    return 1 - (1 - final) * begun


class Schedules:
    """Sets what changes in an optimizer's groups before every update; what stood there at first is scaled.

    Made of the training loop's hyperparameters (:data:`kftune.results.SCHEDULE_PARAMETERS`):

    Args:
        optimizer: whose groups are set. A group's other learning rates scale with ``lr`` where they are ratios to it.
        params: those that are given. ``schedule``, ``warmup``, ``final_lr`` (a ratio to ``lr``), ``decay_share``,
            ``milestones`` (numbers, or their text ``"0.5, 0.75"``), ``step_factor`` and ``schedule_by`` are of the
            learning rate, and of what follows it with ``with_lr``; ``damping_schedule`` and ``weight_decay_schedule``
            with ``final_damping`` and ``final_weight_decay`` are of these, without a warm-up of their own;
            ``momentum_growth`` and ``momentum_growth_rate``: see :func:`momentum_after`. ``momentum_growth_start`` is
            the first update whose direction the velocity has: in the papers' v_k = μ_k·v_{k−1} + d_k with μ_0 = 0 it is
            the ``first_update``, v_1 = μ_1·d_0 + d_1; torch's form keeps no v while its momentum is 0, which gives
            v_1 = d_1, the ``second_update``. ``schedule`` may also be the
            JSON text of ``{"target": "torch.optim.lr_scheduler:OneCycleLR", "args": {…}}``: a scheduler of torch, which
            makes a step per update or epoch (``schedule_by``), or 1000 evenly over the budget.
        total_updates: the budget, if it is one of updates; to refuse what lies beyond.

    Raises:
        ValueError: a value that is not allowed, or that says nothing without another; it begins with the key.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, params: Mapping[str, Any], *, total_updates: int | None = None
    ) -> None:
        self._optimizer = optimizer
        self._name = type(optimizer).__name__
        self._adapted: Sequence[str] = getattr(optimizer, "adapts", ())
        self._params = params
        self._by = _one_of("schedule_by", params.get("schedule_by", "share"), UNITS)
        self._setters: dict[str, tuple[list[float], Callable[[float, Progress], float]]] = {}
        self._torch: _TorchSchedule | None = None
        self._check_together(total_updates)
        schedule = params.get("schedule", "constant")
        if _is_mapping(schedule):
            self._torch = _TorchSchedule(optimizer, schedule, by=self._by)
        elif "schedule" in params or "warmup" in params:
            factor = self._lr_factor(schedule)
            self._set("lr", "schedule", lambda base, progress: base * factor(progress))
        for key in ("damping", "weight_decay"):
            if f"{key}_schedule" in params:
                self._follow(key)
        if "momentum_growth" in params:
            growth = _one_of("momentum_growth", params["momentum_growth"], MOMENTUM_GROWTHS)
            rate = _number("momentum_growth_rate", params.get("momentum_growth_rate", 1.0), 0.0, math.inf)
            start = params.get("momentum_growth_start", "second_update")
            keeps_first = _one_of("momentum_growth_start", start, MOMENTUM_GROWTH_STARTS) == "first_update"
            least = _ALMOST_ZERO if keeps_first else 0.0

            def momentum(base: float, progress: Progress) -> float:
                grown = momentum_after(progress.updates, growth=growth, rate=rate, largest=base)
                return max(grown, min(least, base))

            self._set("momentum", "momentum_growth", momentum)

    def __bool__(self) -> bool:
        """Whether there is anything to set."""
        return bool(self._setters) or self._torch is not None

    def set(self, progress: Progress) -> None:
        """For the update that comes next."""
        for key, (bases, value) in self._setters.items():
            for group, base in zip(self._optimizer.param_groups, bases, strict=True):
                if not math.isnan(base):
                    group[key] = value(base, progress)
        if self._torch is not None:
            self._torch.set(progress)

    def state_dict(self) -> dict[str, Any]:
        """What a continuation needs: the first values, since the optimizer's own groups hold the scaled ones."""
        state: dict[str, Any] = {"first": {key: list(bases) for key, (bases, _) in self._setters.items()}}
        return state | ({} if self._torch is None else {"torch": self._torch.state_dict()})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the schedules that ``state`` is of; these were made with the same hyperparameters.

        Raises:
            ValueError: they were not.
        """
        first = state["first"]
        if list(first) != list(self._setters) or ("torch" in state) != (self._torch is not None):
            raise ValueError(
                f"the state is of schedules of {', '.join(first)}, these are of {', '.join(self._setters)}"
            )
        for key, (bases, _) in self._setters.items():
            if len(first[key]) != len(bases):
                raise ValueError(f"the state has {len(first[key])} parameter groups, this optimizer {len(bases)}")
            bases[:] = first[key]
        if self._torch is not None:
            self._torch.load_state_dict(state["torch"])

    def _check_together(self, total_updates: int | None) -> None:
        """Refuse what says nothing, or lies beyond the budget."""
        params = self._params
        for key in params:
            if key not in SCHEDULE_PARAMETERS:
                raise ValueError(f"{key} is not a schedule's{suggestion(key, SCHEDULE_PARAMETERS)}")
        for key, needed in _NEEDS.items():
            if key in params and not set(needed) & set(params):
                raise ValueError(f"{key} needs {' or '.join(needed)}")
        schedule = params.get("schedule", "constant")
        if not _is_mapping(schedule):
            _one_of("schedule", schedule, SCHEDULES)
            if schedule == "step" and "milestones" not in params:
                raise ValueError("schedule step needs milestones")
            if self._by != "share" and schedule not in ("constant", "step"):
                raise ValueError(
                    f"schedule_by {self._by} is for schedule step or constant, {schedule} ends with the budget"
                )
        end = total_updates if self._by == "updates" else None
        last = _milestones(params["milestones"])[-1] if "milestones" in params else 0.0
        if end is not None and last >= end:
            raise ValueError(f"milestones must be before the budget's end after {end} updates, got {last:g}")

    def _lr_factor(self, schedule: str) -> Callable[[Progress], float]:
        whole = self._by == "share"
        warmup = _number("warmup", self._params.get("warmup", 0.0), 0.0, 1.0 if whole else math.inf)
        after = self._factor(schedule, final_key="final_lr", begin=warmup if whole else 0.0)

        def factor(progress: Progress) -> float:
            done = _in_unit(progress, self._by)
            return done / warmup if done < warmup else after(progress)

        return factor

    def _factor(self, schedule: str, *, final_key: str, begin: float = 0.0) -> Callable[[Progress], float]:
        """The factor as a function of the progress; ``begin`` is the share at which the warm-up ends."""
        params = self._params
        final = _number(final_key, params.get(final_key, 0.0), 0.0, math.inf)
        if schedule == "step":
            times = _milestones(params["milestones"])
            if self._by == "share" and not all(0 < time < 1 for time in times):
                raise ValueError(f"milestones must be shares of the budget between 0 and 1, got {params['milestones']}")
            by_step = _number("step_factor", params.get("step_factor", _STEP_FACTOR), 0.0, math.inf)
            return lambda progress: by_step ** sum(time <= _in_unit(progress, self._by) for time in times)
        share = params.get("decay_share", _DECAY_SHARE)
        if not 0 < _number("decay_share", share, 0.0, math.inf) <= 1:
            raise ValueError(f"decay_share must be in (0, 1], got {share}")

        def factor(progress: Progress) -> float:
            t = min(1.0, max(0.0, (progress.share - begin) / (1 - begin)))
            return schedule_factor(schedule, t, final=final, decay_share=share)

        return factor

    def _follow(self, key: str) -> None:
        """Schedule the damping or the weight decay, by itself or with the learning rate."""
        name = f"{key}_schedule"
        schedule = _one_of(name, self._params[name], TIED_SCHEDULES)
        if schedule == "step" and "milestones" not in self._params:
            raise ValueError(f"{name} step needs milestones")
        if schedule != "with_lr":
            factor = self._factor(schedule, final_key=f"final_{key}")
        elif self._torch is not None or "lr" not in self._setters:
            raise ValueError(f"{name} with_lr needs a schedule or warmup of the learning rate, by a name of kftune's")
        else:
            factor = self._lr_factor(self._params.get("schedule", "constant"))
        self._set(key, name, lambda base, progress: base * factor(progress))

    def _set(self, key: str, name: str, value: Callable[[float, Progress], float]) -> None:
        if key in self._adapted:
            raise ValueError(
                f"{name} is for a {_spoken(key)} that the method leaves alone, {self._name} adapts its own"
            )
        bases = [
            float(group[key]) if _is_number(group.get(key)) else math.nan for group in self._optimizer.param_groups
        ]
        if all(map(math.isnan, bases)):
            raise ValueError(f"{name} is for optimizers with a {_spoken(key)}, {self._name} has none")
        self._setters[key] = bases, value


class _TorchSchedule:
    """One of torch's learning-rate schedulers, stepped as the run goes on."""

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: str, *, by: str) -> None:
        import torch

        target, args = _target_and_args(schedule)
        try:
            made = load_target(target)
        except UsageError as error:
            raise ValueError(f"schedule {target}: {error}") from None
        if not (inspect.isclass(made) and issubclass(made, torch.optim.lr_scheduler.LRScheduler)):
            raise ValueError(f"schedule {target} is no scheduler of torch (torch.optim.lr_scheduler.LRScheduler)")
        if issubclass(made, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ValueError(f"schedule {target} needs a loss; schedules here are functions of the budget used")
        try:
            self._scheduler: Any = made(optimizer, **args)
        except (TypeError, ValueError, AssertionError) as error:
            raise ValueError(f"schedule {target} refuses its args: {error}") from error
        self._by, self._made = by, 0

    def set(self, progress: Progress) -> None:
        done = progress.share * _VIRTUAL_STEPS if self._by == "share" else _in_unit(progress, self._by)
        while self._made < math.floor(done):
            self._scheduler.step()
            self._made += 1

    def state_dict(self) -> dict[str, Any]:
        return {"scheduler": self._scheduler.state_dict(), "made": self._made}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._scheduler.load_state_dict(state["scheduler"])
        self._made = state["made"]


_NEEDS = {
    "final_lr": ("schedule",),
    "decay_share": ("schedule", "damping_schedule", "weight_decay_schedule"),
    "milestones": ("schedule", "damping_schedule", "weight_decay_schedule"),
    "step_factor": ("milestones",),
    "schedule_by": ("schedule", "warmup"),
    "final_damping": ("damping_schedule",),
    "final_weight_decay": ("weight_decay_schedule",),
    "momentum_growth_rate": ("momentum_growth",),
    "momentum_growth_start": ("momentum_growth",),
}


def _in_unit(progress: Progress, unit: str) -> float:
    return float(getattr(progress, unit))


def _milestones(given: Any) -> list[float]:
    """The numbers; a text of them is what a study file's list becomes."""
    parts = given.split(",") if isinstance(given, str) else given if isinstance(given, Sequence) else [given]
    try:
        times = [float(part) for part in parts]
    except (TypeError, ValueError):
        times = []
    if not times or not all(0 < time < math.inf for time in times) or times != sorted(set(times)):
        raise ValueError(f"milestones must be positive numbers in ascending order, such as 0.5, 0.75, got {given!r}")
    return times


def _is_mapping(schedule: Any) -> bool:
    return isinstance(schedule, str) and schedule.startswith("{")


def _target_and_args(schedule: str) -> tuple[str, dict[str, Any]]:
    given = json.loads(schedule)
    return given["target"], given.get("args") or {}


def _one_of(key: str, value: Any, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ValueError(f"{key} must be one of {', '.join(allowed)}, got {value!r}")
    return str(value)


def _number(key: str, value: Any, low: float, high: float) -> float:
    """A number in [low, high)."""
    if not _is_number(value) or not low <= value < high:
        raise ValueError(f"{key} must be in [{low:g}, {high:g}), got {value!r}")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _spoken(key: str) -> str:
    return {"lr": "learning rate"}.get(key, key.replace("_", " "))
