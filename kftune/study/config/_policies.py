"""How a study goes about its runs: what each gets, when it is cut short or made again, where the study stops."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_serializer, model_validator

from kftune.study.config._fields import Number, Strict, Whole
from kftune.study.config._flaws import show
from kftune.study.config._storage import storage_url

__all__ = ["BudgetConfig", "LimitConfig", "PrunerConfig", "RacingConfig", "WarmStartConfig"]

_REDUCTION_FACTOR = 3
_ROUNDING = 1e-9


class BudgetConfig(Strict):
    """What each run gets: ``seconds`` of training or a number of parameter ``updates``, never both.

    Attributes:
        seconds: of training.
        updates: of the parameters.
        tolerance: for seconds: a run is flagged if the machine was, on average over it, more than this share slower
            or faster than usual (0.25: 1.25 times).
        reruns: for seconds: how many times a flagged run is made again, later, before it is taken as it is.
    """

    seconds: Annotated[Number, Field(gt=0)] | None = None
    updates: Annotated[Whole, Field(ge=1)] | None = None
    tolerance: Annotated[Number, Field(gt=0)] = 0.25
    reruns: Annotated[Whole, Field(ge=0, le=10)] = 1

    @model_validator(mode="after")
    def _exactly_one(self) -> BudgetConfig:
        if (self.seconds is None) == (self.updates is None):
            given = "neither" if self.seconds is None else "both budget.seconds and budget.updates"
            raise ValueError(f"give either seconds or updates, got {given}")
        pointless = sorted({"tolerance", "reruns"} & self.model_fields_set)
        if self.updates is not None and pointless:
            raise ValueError(f"{pointless[0]} is for a budget in seconds; updates do not depend on the machine's speed")
        return self

    def identity(self) -> dict[str, Any]:
        """What decides what a run is."""
        return {"seconds": self.seconds} if self.seconds is not None else {"updates": self.updates}

    @model_serializer
    def _only_the_one(self) -> dict[str, Any]:
        if self.seconds is None:
            return {"updates": self.updates}
        return {"seconds": self.seconds, "tolerance": self.tolerance, "reruns": self.reruns}


class LimitConfig(Strict):
    """Where the whole study file stops, whichever comes first; what was spent before a resume counts.

    Attributes:
        trials: of all its studies together.
        hours: of wall time, of all its sessions together.
    """

    trials: Annotated[Whole, Field(ge=1)] | None = None
    hours: Annotated[Number, Field(gt=0)] | None = None


class RacingConfig(Strict):
    """Trials whose first run is hopeless are not repeated.

    Hopeless: after ``startup_trials`` earlier trials of the study have ended, the first run's objective is above the
    ``quantile`` of these trials' first runs.

    Attributes:
        quantile: between 0 and 1; smaller is stricter.
    """

    quantile: Annotated[Number, Field(gt=0, lt=1)] = 0.5

    @model_validator(mode="before")
    @classmethod
    def _from_true(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return value
        if value is True:
            return {}
        raise ValueError(f"must be true, null or a mapping such as {{quantile: 0.5}}, got {show(value)}")


class PrunerConfig(Strict):
    """Runs that fall behind are stopped; the resource is the share of the budget's train seconds (or updates) used.

    Attributes:
        name: ``median`` (worse than the median of earlier trials at the same share), ``successive_halving`` or
            ``hyperband``.
        after: share of the budget before which no run is stopped; the first rung of the latter two.
        reduction_factor: of the latter two: one in so many goes on from rung to rung.
    """

    name: Literal["median", "successive_halving", "hyperband"]
    after: Annotated[Number, Field(gt=0, lt=1)] = 0.2
    reduction_factor: Annotated[Whole, Field(ge=2)] = _REDUCTION_FACTOR

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _reduces(self) -> PrunerConfig:
        # The default is part of what is stored of every study.
        if self.name == "median" and self.reduction_factor != _REDUCTION_FACTOR:
            raise ValueError("reduction_factor is for successive_halving and hyperband; median has none")
        return self

    def first_step(self, points: int) -> int:
        """The first of a run's evaluations, counted from 1, after which it may be stopped.

        Args:
            points: evaluations of a run, at equal shares of the budget.
        """
        return max(1, math.ceil(self.after * points - _ROUNDING))


class WarmStartConfig(Strict):
    """Earlier studies whose best configurations are tried first.

    Attributes:
        source: a study file's name in the same database, or ``database#name``.
        top: how many of each earlier study of the same optimizer.
    """

    source: Annotated[str, Field(alias="from", min_length=1)]
    top: Annotated[Whole, Field(ge=1)] = 1

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"from": value} if isinstance(value, str) else value

    @field_validator("source")
    @classmethod
    def _names_a_study(cls, value: str) -> str:
        database, mark, name = value.rpartition("#")
        if not name or (mark and not database):
            raise ValueError(f"must be a study file's name, or database#name, got {show(value)}")
        if database:
            storage_url(database)
        return value


def as_list(value: Any) -> Any:
    """One item stands for a list of one."""
    return [value] if isinstance(value, str | Mapping) else value


WarmStarts = Annotated[tuple[WarmStartConfig, ...], BeforeValidator(as_list)]
