"""What a sampler of the registry is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna

from kftune.errors import UsageError, suggestion
from kftune.space import Space
from kftune.study.samplers.coordinates import active_dimensions, distribution


@dataclass(frozen=True, kw_only=True)
class SamplerEntry:
    """One sampler of the registry.

    Attributes:
        name: its name in a study file.
        make: called as ``make(space=…, seed=…, trial_number=…, n_startup_trials=…, **options)`` for every ask. What
            the sampler then proposes may depend on these and on what is stored in the study, on nothing else: a
            study that is interrupted and resumed must go on as if it had not been.
        summary: one line.
        source: paper or package, as one would cite it in a line.
        options: option → default, for ``sampler: {name: …, <option>: …}``; the default's type is the option's.
        allowed: option → the values it may have; for a number a pair (smallest, largest).
        conditional: whether it can model dimensions that exist only in some configurations.
        categorical: whether it can model categorical dimensions.
        random_start: whether the first ``n_startup_trials`` trials are random, the same ones as with every such
            sampler; without, the very first trial is of its own design.
        learns: whether what it proposes depends on results.
        widen: for a sampler that may leave the box: (space, options) → the space with the bounds that it may go to.
            ``make`` and ``count`` then also get ``widest``, which is at most that.
        count: for a sampler that runs out of configurations: called as ``count(space=…, widest=…, seed=…, trials=…,
            **options)`` with the trials so far; returns how many there will be in all, as far as these tell.
    """

    name: str
    make: Callable[..., optuna.samplers.BaseSampler]
    summary: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    allowed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    conditional: bool = True
    categorical: bool = True
    random_start: bool = True
    learns: bool = True
    widen: Callable[[Space, Mapping[str, Any]], Space] | None = None
    count: Callable[..., int] | None = None

    def resolve_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options, defaults filled in.

        Raises:
            UsageError: an unknown option, or a value of the wrong type or out of range.
        """
        for name, value in options.items():
            if name not in self.options:
                raise UsageError(f"sampler {self.name!r} has no option {name!r}{suggestion(name, self.options)}")
            self._check_option(name, value)
        return {**self.options, **options}

    def _check_option(self, name: str, value: Any) -> None:
        default, allowed = self.options[name], self.allowed.get(name)
        is_number = isinstance(default, int | float) and not isinstance(default, bool)
        if is_number:
            smallest, largest = allowed or (float("-inf"), float("inf"))
            types = (int,) if isinstance(default, int) else (int, float)
            good = isinstance(value, types) and not isinstance(value, bool) and smallest <= value <= largest
            kind = "a whole number" if isinstance(default, int) else "a number"
            expected = f"{kind} in [{smallest:g}, {largest:g}]"
        elif allowed:
            good, expected = value in allowed, f"one of {', '.join(allowed)}"
        else:
            good, expected = isinstance(value, bool), "true or false"
        if not good:
            raise UsageError(f"sampler {self.name!r}: {name} must be {expected}, got {value!r}")

    def check_space(self, space: Space) -> None:
        """Check that the sampler can search ``space``.

        Raises:
            UsageError: it holds a dimension that this sampler would only draw at random, or nothing to search.
        """
        for name, dimension in active_dimensions(space).items():
            if dimension.when is not None and not self.conditional:
                problem = f"{name!r}, which exists only for some values of {dimension.when.name!r}"
                remedy = f"fix {dimension.when.name!r}"
            elif dimension.kind == "categorical" and not distribution(dimension).single() and not self.categorical:
                problem, remedy = f"the categorical dimension {name!r}", f"fix {name!r}"
            else:
                continue
            raise UsageError(f"sampler {self.name!r} cannot search {problem}: {remedy}, or use gpyopt or tpe")
