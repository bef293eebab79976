"""The study file as models: types, ranges and defaults of every key. What names mean is checked in ``_plans``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from kftune._targets import check_target, code_version, is_target
from kftune.errors import suggestion
from kftune.study.config._flaws import show
from kftune.study.config._storage import storage_url, without_password

if TYPE_CHECKING:
    from kftune.study.config._plans import StudyPlan

__all__ = [
    "BudgetConfig",
    "DimensionConfig",
    "EvaluationConfig",
    "OptimizerConfig",
    "ProblemConfig",
    "SamplerConfig",
    "StudyConfig",
]

_LONGEST_NAME = 100
_NAME = re.compile(r"[^\W_][\w.\- ]*(?<! )")


def _number(value: Any) -> Any:
    """Text that reads as a number is one; true and false are not."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"must be a number, got {show(value)}") from None
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {show(value)}")
    return value


def _whole(value: Any) -> Any:
    """As :func:`_number`; pydantic then refuses fractions."""
    try:
        return _number(value)
    except ValueError as error:
        raise ValueError(str(error).replace("a number", "a whole number", 1)) from None


def _name(value: Any) -> Any:
    """Names become parts of file names and of study names, where a slash separates."""
    if isinstance(value, int | float):
        raise ValueError(f"must be text, got {show(value)} (put it in quotes)")
    if not isinstance(value, str):
        raise ValueError(f"must be text, got {show(value)}")
    if not _NAME.fullmatch(value) or len(value) > _LONGEST_NAME:
        raise ValueError(
            "must begin with a letter or digit and hold only letters, digits, spaces and . _ - "
            f"(at most {_LONGEST_NAME} characters), got {show(value)}"
        )
    return value


def _scalar(value: Any) -> Any:
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(f"must be a single value (number, text, true, false or null), got {show(value)}")
    return value


def _threads(value: Any) -> Any:
    if value == "auto":
        return value
    number = value if isinstance(value, str) else _number(value)
    if not isinstance(number, int | float) or number < 1 or number != int(number):
        raise ValueError(f"must be a whole number of at least 1, or auto, got {show(value)}")
    return int(number)


def _devices(value: Any) -> Any:
    """``auto``, or a list of ``cpu``, ``cuda`` (all of them) and ``cuda:<i>``; one slot per item."""
    if value == "auto":
        return value
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names:
        raise ValueError(f"must be auto or a list of devices such as cpu or cuda:0, got {show(value)}")
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"cpu|cuda(:\d+)?", name):
            hint = suggestion(name, ["auto", "cpu", "cuda", "cuda:0"]) if isinstance(name, str) else ""
            raise ValueError(f"unknown device {show(name)}{hint}")
    return tuple(names)


def _values(value: Any) -> Any:
    """One value; or several, for an argument that is a tuple (only targets have these)."""
    return tuple(_scalar(item) for item in value) if isinstance(value, list | tuple) and value else _scalar(value)


def _target(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"must be text such as package.module:Class, got {show(value)}")
    check_target(value)
    return value


def _named(value: Any, kind: str) -> Any:
    """A bare name stands for ``{name: …}``, one with a colon for ``{target: …}``."""
    if isinstance(value, str):
        return {"target" if is_target(value) else "name": value}
    if not isinstance(value, Mapping):
        raise ValueError(f"must be {kind} or a mapping with its name, got {show(value)}")
    return value


Number: TypeAlias = Annotated[float, BeforeValidator(_number)]
Whole: TypeAlias = Annotated[int, BeforeValidator(_whole)]
Name: TypeAlias = Annotated[str, BeforeValidator(_name)]
Scalar: TypeAlias = Annotated[Any, BeforeValidator(_scalar)]
Values: TypeAlias = Annotated[Any, BeforeValidator(_values)]
Target: TypeAlias = Annotated[str, BeforeValidator(_target)]
Devices: TypeAlias = Annotated[Literal["auto"] | tuple[str, ...], BeforeValidator(_devices)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class BudgetConfig(_Strict):
    """What each run gets: ``seconds`` of training or a number of parameter ``updates``, never both."""

    seconds: Annotated[Number, Field(gt=0)] | None = None
    updates: Annotated[Whole, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> BudgetConfig:
        if (self.seconds is None) == (self.updates is None):
            given = "neither" if self.seconds is None else "both budget.seconds and budget.updates"
            raise ValueError(f"give either seconds or updates, got {given}")
        return self

    @model_serializer
    def _only_the_one(self) -> dict[str, Any]:
        return {"seconds": self.seconds} if self.seconds is not None else {"updates": self.updates}


class EvaluationConfig(_Strict):
    """How often a run is measured (``points`` per run) and on how many training examples its train loss is."""

    points: Annotated[Whole, Field(ge=1)] = 20
    train_examples: Annotated[Whole, Field(ge=1)] = 2000


class _Item(_Strict):
    """A plug-in: of the registry by ``name``, or anyone's by ``target``, which ``name`` only calls something."""

    target: Target | None = None
    name: str | None = None

    @field_validator("name", mode="before")
    @classmethod
    def _names_the_target(cls, value: Any, info: ValidationInfo) -> Any:
        # A registry's name is looked up, this one becomes part of studies' names as a label does.
        return value if value is None or info.data.get("target") is None else _name(value)

    @property
    def key(self) -> str:
        """What the registry is asked for."""
        return self.target or self.name or ""


class ProblemConfig(_Item):
    """A problem; ``label`` tells two of the same name apart."""

    label: Name | None = None
    args: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return _named(value, "a problem's name")


class DimensionConfig(_Strict):
    """A change to one dimension of an optimizer's own space, or a whole new one; keys not given are the own space's.

    ``low`` and ``high`` are the value's own bounds, unless ``relative_to`` is given too: then they are the ratio's.
    """

    low: Number | None = None
    high: Number | None = None
    log: bool | None = None
    integer: bool | None = Field(default=None, alias="int")
    choices: tuple[Scalar, ...] | None = Field(default=None, min_length=1)
    relative_to: str | None = None
    complement: bool | None = None
    when: dict[str, tuple[Scalar, ...]] | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_range(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError(
                "must be a range such as {low: 0.001, high: 0.1, log: true} or {choices: [1, 2]}, "
                f"got {show(value)} (one value belongs in fixed)"
            )
        when = value.get("when")
        if isinstance(when, Mapping):
            lists = {name: v if isinstance(v, list | tuple) else [v] for name, v in when.items()}
            return {**value, "when": lists}
        return value

    @model_validator(mode="after")
    def _one_condition(self) -> DimensionConfig:
        if self.when is not None and len(self.when) != 1:
            raise ValueError(f"when takes one dimension and its values, such as {{fisher: [mc]}}, got {len(self.when)}")
        if self.choices is not None and (others := self.given() - {"choices", "when"}):
            raise ValueError(f"choices cannot be combined with {', '.join(sorted(others))}")
        return self

    def given(self) -> set[str]:
        """The keys that stand in the file (``relative_to: null`` and ``when: null`` count, they mean "no longer")."""
        aliases = {"integer": "int"}
        nullable = {"relative_to", "when"}
        names = (name for name in self.model_fields_set if name in nullable or getattr(self, name) is not None)
        return {aliases.get(name, name) for name in names}

    @model_serializer
    def _only_given(self) -> dict[str, Any]:
        values = {"int" if name == "integer" else name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in values.items() if name in self.given()}


class OptimizerConfig(_Item):
    """An optimizer; ``label`` lets it stand twice with other ``space`` or ``fixed`` values."""

    label: Name | None = None
    space: dict[str, DimensionConfig] = Field(default_factory=dict)
    fixed: dict[str, Values] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return _named(value, "an optimizer's name")


class SamplerConfig(_Strict):
    """What proposes configurations: a name, or ``{name: tpe, <option>: …}``."""

    name: str = "gpyopt"
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        mapping = _named(value, "a sampler's name")
        if not isinstance(mapping, Mapping):
            return mapping
        options = {key: option for key, option in mapping.items() if key != "name"}
        return {key: mapping[key] for key in mapping if key == "name"} | {"options": options}

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        return {"name": self.name, **self.options}


class StudyConfig(_Strict):
    """A study file.

    Attributes:
        name: of the study file; the first part of its studies' names.
        problems: what is trained.
        optimizers: what trains it; every optimizer meets every problem.
        budget: what each run gets.
        trials: hyperparameter configurations per study, in all (a resumed study does not start counting anew).
        repeats: runs per trial, each from a seed of its own; the trial's value is their mean.
        startup_trials: random trials before the sampler uses what it has seen.
        sampler: what proposes configurations.
        objective: what is minimised, measured at the end of a run; ``test_error`` is 1 − accuracy.
        seed: of the sampler, the initial weights and the data order.
        storage: URL of the database.
        devices: ``"auto"`` (all CUDA devices, else the CPU) or one name per slot; a name may stand twice.
        threads: CPU threads of a worker; ``"auto"`` shares the cores out among the CPU slots.
        dtype: of data and parameters.
        evaluation: how runs are measured.
        run_timeout: wall seconds after which a run is stopped; None for no limit of the study's own.
        module_dir: where the modules of targets are looked for before the installed ones; by default the study file's
            own directory if it has targets.
    """

    name: Name
    problems: tuple[ProblemConfig, ...] = Field(min_length=1)
    optimizers: tuple[OptimizerConfig, ...] = Field(min_length=1)
    budget: BudgetConfig
    trials: Annotated[Whole, Field(ge=1)]
    repeats: Annotated[Whole, Field(ge=1)] = 2
    startup_trials: Annotated[Whole, Field(ge=1)] = 8
    sampler: SamplerConfig = SamplerConfig()
    objective: Literal["test_loss", "train_loss", "test_error"] = "test_loss"
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = 0
    storage: Annotated[str, BeforeValidator(storage_url)]
    devices: Devices = "auto"
    threads: Annotated[Literal["auto"] | int, BeforeValidator(_threads)] = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    evaluation: EvaluationConfig = EvaluationConfig()
    run_timeout: Annotated[Number, Field(gt=0)] | None = None
    module_dir: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _default_storage(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("storage") is None:
            return {**value, "storage": f"{value.get('name')}.db"}
        return value

    def plans(self) -> tuple[StudyPlan, ...]:
        """The studies of this file, in its order: for every problem, every optimizer.

        Raises:
            ConfigError: a name, value or range that the registries' entries do not allow.
        """
        from kftune.study.config._plans import make_plans  # imports torch

        plans, flaws = make_plans(self)
        flaws.raise_if_any()
        return plans

    def code_versions(self) -> dict[str, str]:
        """Target → hash of its module's file, for the targets whose modules are in ``module_dir``."""
        targets = [item.target for item in (*self.problems, *self.optimizers) if item.target is not None]
        versions = {target: code_version(target, self.module_dir) for target in targets}
        return {target: version for target, version in versions.items() if version is not None}

    def threads_per_worker(self, devices: Sequence[str]) -> int:
        """CPU threads of each worker when one runs per item of ``devices``."""
        if self.threads != "auto":
            return self.threads
        n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, n_cores // max(1, len(devices)))

    def to_dict(self) -> dict[str, Any]:
        """Plain data with every default filled in; ``config_from_dict`` makes an equal config from it.

        A password in the database's URL is left out: what is stored is shown to others.
        """
        return self.model_dump(mode="json", by_alias=True) | {"storage": without_password(self.storage)}
