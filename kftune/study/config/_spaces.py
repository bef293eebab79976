"""An optimizer's own search space with a study file's ``space`` and ``fixed`` applied, for one problem."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kftune._targets import user_error
from kftune.errors import suggestion
from kftune.results import BATCH_PARAMETERS
from kftune.space import Categorical, Condition, Dimension, Float, Int, Space, Suggester, Value
from kftune.study.config._flaws import Flaws, Location, show
from kftune.study.config._parameters import BATCH_SIZES, Parameter, equal_choice, hyperparameters, unusable_range
from kftune.study.config._proposals import Corner, Draw

if TYPE_CHECKING:
    from kftune.optim import ModelOptimizer, OptimizerEntry
    from kftune.problems import ProblemEntry
    from kftune.study.config._models import DimensionConfig, OptimizerConfig

__all__ = ["make_space"]

_N_DRAWS = 20


def make_space(
    config: OptimizerConfig,
    *,
    entry: OptimizerEntry,
    problem: ProblemEntry,
    location: Location,
    flaws: Flaws,
    total_updates: int | None = None,
) -> Space:
    """The space that is searched.

    Batch sizes of the optimizer's own space are clipped to the problem's training examples; larger ones that the
    study file asks for are flaws.

    Args:
        config: the optimizer's item of the study file.
        entry: the optimizer.
        problem: what it is to train.
        location: of the item, for messages.
        flaws: what is wrong is added here; the space is then not to be used.
        total_updates: the budget, where it is one of updates.
    """
    builder = _Builder(config, entry, problem, location, flaws, total_updates=total_updates)
    n_before = len(flaws)
    dimensions = {name: d for name, c in config.space.items() if (d := builder.dimension(name, c)) is not None}
    given = builder.taken_apart(config.fixed)
    fixed = {name: value for name, one in given.items() for value in builder.fixed(name, one)}
    own = builder.own
    if len(flaws) > n_before:
        return own
    try:
        space = own.override(dimensions, fixed)
    except ValueError as error:
        flaws.add((*location, "space"), str(error))
        return own
    if builder.is_complete(space):
        builder.check_conditions(space)
        builder.check_values(space)
    return space


class _Builder:
    """One optimizer item on its way to a space; ``own`` is the optimizer's own, its batch sizes clipped."""

    def __init__(
        self,
        config: OptimizerConfig,
        entry: OptimizerEntry,
        problem: ProblemEntry,
        location: Location,
        flaws: Flaws,
        *,
        total_updates: int | None,
    ) -> None:
        from kftune.optim import TargetEntry  # imports torch

        self._config = config
        self._entry = entry
        self._problem = problem
        self._location = location
        self._flaws = flaws
        self._total_updates = total_updates
        self._parameters = hyperparameters(entry)
        self._target = entry if isinstance(entry, TargetEntry) else None
        self._joined = self._target.joined if self._target is not None else {}
        self.own = _clipped_space(entry.space, problem.n_train)

    def taken_apart(self, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """Tuples of the file (``betas: [0.9, 0.99]``) as the hyperparameters they are made of."""
        taken: dict[str, Any] = {}
        for name, value in fixed.items():
            parts = self._joined.get(name, ())
            where = (*self._location, "fixed", name)
            takes_more = name in self._parameters and self._parameters[name].as_value is not None
            if takes_more or not isinstance(value, tuple | Mapping):
                taken[name] = value
            elif not parts:
                allowed = "a single value (number, text, true, false or null)"
                self._flaws.add(where, f"must be {allowed}, got {show(value)}")
            elif len(value) != len(parts):
                self._flaws.add(where, f"must be a list of {len(parts)} numbers, got {len(value)}")
            elif twice := [part for part in parts if part in fixed]:
                self._flaws.add(where, f"{twice[0]} stands in fixed too; give either")
            else:
                taken |= zip(parts, value, strict=True)
        return taken

    def fixed(self, name: str, value: Any) -> list[Value]:
        """The one value, as the optimizer should get it; none if it is a flaw."""
        where = (*self._location, "fixed", name)
        parameter = self._parameter(name, where)
        if parameter is None:
            return []
        if name in self._config.space:
            self._flaws.add(where, "stands in space too; a value is either searched or fixed")
            return []
        return self._checked(parameter, value, where)

    def dimension(self, name: str, config: DimensionConfig) -> Dimension | None:
        """The dimension that the study file describes; None if it is flawed."""
        where = (*self._location, "space", name)
        parameter = self._parameter(name, where)
        if parameter is None:
            return None
        base = self.own.dimensions.get(name)
        if not self._references_exist(config, where):
            return None
        when = _condition(config, base)
        if config.choices is not None:
            choices = [
                value
                for i, given in enumerate(config.choices)
                for value in self._checked(parameter, given, (*where, "choices", i))
            ]
            if equal := equal_choice(choices):
                self._flaws.add((*where, "choices", equal[0]), equal[1])
                return None
            return self._made(where, Categorical, choices=tuple(choices), when=when) if choices else None
        return self._range(parameter, config, base, where, when)

    def is_complete(self, space: Space) -> bool:
        """Whether what has no default is searched or fixed, a batch size among it."""
        names = space.names()
        if not names:
            self._flaws.add(
                (*self._location, "space"),
                f"is missing: {self._entry.name} has no search space of its own; write one, such as "
                "{lr: {low: 1.0e-4, high: 0.1, log: true}, batch_size: {low: 16, high: 512, log: true}}",
            )
            return False
        missing = [p.name for p in self._parameters.values() if p.is_required and p.name not in names]
        missing += [] if set(BATCH_SIZES) & set(names) else [BATCH_SIZES[0]]
        for name in missing:
            what = f"{self._entry.name} needs {name}: give it a range in space, or a value in fixed"
            self._flaws.add(self._location, what)
        return not missing

    def check_conditions(self, space: Space) -> None:
        """A dimension asked for by the file must be reachable under the fixed values."""
        for name in self._config.space:
            when = space.dimensions[name].when
            if when is None:
                continue
            if when.name in space.fixed:
                reachable: tuple[Value, ...] = (space.fixed[when.name],)
            else:
                other = space.dimensions[when.name]
                reachable = other.choices if isinstance(other, Categorical) else when.values
            if not set(reachable) & set(when.values):
                wanted, is_ = (" or ".join(show(value) for value in values) for values in (when.values, reachable))
                self._flaws.add(
                    (*self._location, "space", name),
                    f"has no effect: it is used only where {when.name} is {wanted}, and {when.name} is {is_} here",
                )

    def check_values(self, space: Space) -> None:
        """The optimizer itself must accept what may be proposed.

        Build it over a tiny model at the ends of every range, and at some places between: hyperparameters may depend
        on one another.
        """
        import torch

        with torch.random.fork_rng(devices=[]):
            model = torch.nn.Sequential(torch.nn.Linear(2, 2))
        n_choices = max((len(d.choices) for d in space.dimensions.values() if isinstance(d, Categorical)), default=1)
        proposals: list[Suggester] = [Corner(choice=i, use_high=high) for i in range(n_choices) for high in (0, 1)]
        for proposal in [*proposals, *[Draw(random.Random(i)) for i in range(_N_DRAWS)]]:
            try:
                params = space.suggest(proposal)
                loop = {name: v for name, v in params.items() if self._is_of_loop(name)}
                own = {name: v for name, v in params.items() if name not in loop}
                optimizer = self._entry.build(model, likelihood="categorical", params=own)
                self._check_loop(optimizer, loop)
            except Exception as error:
                if not self._is_refusal(error):
                    raise user_error(f"{self._entry.name} cannot be made", error) from error
                self._flaws.add(self._blame(str(error)), str(error).partition("\n")[0])
                return

    def _is_of_loop(self, name: str) -> bool:
        return name in self._parameters and self._parameters[name].of_loop

    def _check_loop(self, optimizer: ModelOptimizer, params: Mapping[str, Any]) -> None:
        """The training loop must accept its own, too.

        Raises:
            ValueError: it does not.
        """
        from kftune.training.data.batches import BatchSizes
        from kftune.training.loop.schedules import Schedules

        sizes = {name: value for name, value in params.items() if name in BATCH_PARAMETERS}
        BatchSizes(**sizes, n_train=self._problem.n_train)
        schedules = {name: value for name, value in params.items() if name not in sizes}
        Schedules(optimizer, schedules, total_updates=self._total_updates)

    def _is_refusal(self, error: Exception) -> bool:
        """Whether a constructor said what is wrong with its arguments, as against failing by a mistake of its own."""
        if isinstance(error, TypeError):
            return self._target is None or "argument" in str(error)
        return isinstance(error, ValueError)

    def _blame(self, message: str) -> Location:
        """The key of the file that an optimizer's message is about: it begins with the argument's name."""
        for part, given in (("fixed", self._config.fixed), ("space", self._config.space)):
            named = [name for name in given if message.startswith(name)]
            if named:
                return (*self._location, part, max(named, key=len))
        return self._location

    def _parameter(self, name: str, where: Location) -> Parameter | None:
        if name in self._joined:
            self._flaws.add(where, f"is several numbers: set {' and '.join(self._joined[name])}")
            return None
        if name not in self._parameters:
            if self._target is not None and self._target.accepts_any:
                return Parameter(name=name)
            known = {*self._parameters, *self._entry.space.names()}
            self._flaws.add(where, f"{self._entry.name} has no hyperparameter {name!r}{suggestion(name, known)}")
            return None
        return self._parameters[name]

    def _checked(self, parameter: Parameter, value: Any, where: Location) -> list[Value]:
        try:
            checked: Value = parameter.check(value)
        except ValueError as error:
            self._flaws.add(where, str(error))
            return []
        return [checked] if self._fits(parameter.name, checked, where) else []

    def _fits(self, name: str, value: Value, where: Location) -> bool:
        """Whether a batch size is between 1 and the number of training examples; other values are not looked at."""
        if name not in BATCH_SIZES or not isinstance(value, int | float):
            return True
        n_train = self._problem.n_train
        if value < 1:
            self._flaws.add(where, f"must be at least 1, got {show(value)}")
        elif value > n_train:
            whose = f"the training examples of {self._problem.name}"
            self._flaws.add(where, f"must be at most {n_train}, {whose}, got {show(value)}")
        return 1 <= value <= n_train

    def _references_exist(self, config: DimensionConfig, where: Location) -> bool:
        """Whether the hyperparameters that ``relative_to`` and ``when`` name exist, and may have these values."""
        n_before = len(self._flaws)
        if config.relative_to is not None:
            other = self._parameter(config.relative_to, (*where, "relative_to"))
            if other is not None and not other.is_numeric:
                self._flaws.add((*where, "relative_to"), f"{other.name} is {other.allowed()}, not a number")
        for name, values in (config.when or {}).items():
            condition = self._parameter(name, (*where, "when"))
            if condition is not None:
                for i, value in enumerate(values):
                    self._checked(condition, value, (*where, "when", name, i))
        return len(self._flaws) == n_before

    def _range(
        self,
        parameter: Parameter,
        config: DimensionConfig,
        base: Dimension | None,
        where: Location,
        when: Condition | None,
    ) -> Dimension | None:
        """A dimension from ``low`` to ``high``, what is not given taken from the optimizer's own."""
        given = config.given()
        settings = _own_settings(base, config)
        settings |= {key: getattr(config, key) for key in given - {"int", "when"}}
        whole = config.integer if config.integer is not None else _is_whole(parameter, base)
        if not parameter.is_numeric:
            self._flaws.add(where, f"{parameter.name} is {parameter.allowed()}: give choices, not a range")
            return None
        if parameter.is_whole and not whole:
            self._flaws.add((*where, "int"), f"{parameter.name} is a whole number, int cannot be false")
            return None
        if not self._bounds_are_good(parameter.name, settings, base, where, whole=whole):
            return None
        if not whole:
            return self._made(where, Float, **settings, when=when)
        settings |= {"low": int(settings["low"]), "high": int(settings["high"])}
        return self._made(where, Int, **settings, when=when)

    def _bounds_are_good(
        self, name: str, settings: Mapping[str, Any], base: Dimension | None, where: Location, *, whole: bool
    ) -> bool:
        n_before = len(self._flaws)
        for key in ("low", "high"):
            if key not in settings:
                own = base.relative_to if isinstance(base, Float) else None
                why = f" (the own range is of {name}/{own}; relative_to: {own} would keep it)" if own else ""
                self._flaws.add((*where, key), f"is missing{why}")
            elif whole and settings[key] != int(settings[key]):
                self._flaws.add((*where, key), f"must be a whole number, got {show(settings[key])}")
            elif settings.get("relative_to") is None:
                self._fits(name, settings[key], (*where, key))
        for key in ("relative_to", "complement"):
            if whole and settings.get(key):
                self._flaws.add((*where, key), "is for real numbers, not for whole ones")
        if len(self._flaws) > n_before:
            return False
        low, high = settings["low"], settings["high"]
        if low > high:
            self._flaws.add((*where, "low"), f"must not be above high ({show(high)}), got {show(low)}")
        elif unusable := unusable_range(low, high, whole=whole):
            self._flaws.add((*where, unusable[0]), unusable[1])
        elif settings.get("log") and settings.get("complement") and high >= 1:
            self._flaws.add((*where, "high"), f"must be below 1 for a log scale of 1 - {name}, got {show(high)}")
        elif settings.get("log") and not settings.get("complement") and low <= 0:
            self._flaws.add((*where, "low"), f"must be above 0 on a log scale, got {show(low)}")
        return len(self._flaws) == n_before

    def _made(self, where: Location, kind: type[Dimension], **settings: Any) -> Dimension | None:
        try:
            return kind(**settings)
        except ValueError as error:
            self._flaws.add(where, str(error))
            return None


def _own_settings(base: Dimension | None, config: DimensionConfig) -> dict[str, Any]:
    """What a partial change keeps of the optimizer's own dimension.

    Bounds given without ``relative_to`` mean the value itself. The own bounds of a ratio are of no use to it then,
    nor the other way round.
    """
    if not isinstance(base, Float | Int):
        return {}
    settings: dict[str, Any] = {"low": base.low, "high": base.high, "log": base.log}
    if isinstance(base, Int):
        return settings
    settings |= {"complement": True} if base.complement else {}
    given = config.given()
    if "relative_to" in given:
        relative_to = config.relative_to
    else:
        relative_to = None if given & {"low", "high"} else base.relative_to
    if relative_to != base.relative_to:
        return {"log": base.log}
    return settings | {"relative_to": relative_to}


def _is_whole(parameter: Parameter, base: Dimension | None) -> bool:
    return isinstance(base, Int) or parameter.is_whole


def _condition(config: DimensionConfig, base: Dimension | None) -> Condition | None:
    if "when" not in config.given():
        return base.when if base is not None else None
    return None if config.when is None else Condition(*next(iter(config.when.items())))


def _clipped_space(own: Space, n_train: int) -> Space:
    """The same space, no batch size above the number of training examples."""
    fixed = {n: min(v, n_train) if n in BATCH_SIZES and isinstance(v, int) else v for n, v in own.fixed.items()}
    dimensions = {n: _clipped(d, n_train) if n in BATCH_SIZES else d for n, d in own.dimensions.items()}
    return Space(dimensions, fixed)


def _clipped(dimension: Dimension, n_train: int) -> Dimension:
    if isinstance(dimension, Categorical):
        smaller = tuple(c for c in dimension.choices if not isinstance(c, int) or c <= n_train)
        return replace(dimension, choices=smaller or (n_train,))
    low, high = min(dimension.low, n_train), min(dimension.high, n_train)
    if isinstance(dimension, Int):
        return replace(dimension, low=int(low), high=int(high))
    return replace(dimension, low=low, high=high)
