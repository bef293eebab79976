"""The study file as models: types, ranges and defaults of every key. What names mean is checked in ``_plans``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from kftune._targets import code_version, target_name
from kftune.study.config._fields import (
    Devices,
    Name,
    Number,
    Scalar,
    Strict,
    Target,
    Values,
    Whole,
    check_name,
    check_threads,
    named,
    whole_or_auto,
)
from kftune.study.config._flaws import show
from kftune.study.config._policies import BudgetConfig, LimitConfig, PrunerConfig, RacingConfig, WarmStarts
from kftune.study.config._storage import storage_url, without_password

__all__ = [
    "BudgetConfig",
    "DimensionConfig",
    "EvaluationConfig",
    "OptimizerConfig",
    "ProblemConfig",
    "SamplerConfig",
    "StudyConfig",
]


class EvaluationConfig(Strict):
    """How runs are measured.

    Attributes:
        points: evaluations per run, at equal shares of its budget.
        train_examples: how many training examples the train loss is taken on.
    """

    points: Annotated[Whole, Field(ge=1)] = 20
    train_examples: Annotated[Whole, Field(ge=1)] = 2000


class _Item(Strict):
    """A plug-in: of the registry by ``name``, or anyone's by ``target``, which ``name`` only calls something.

    ``label`` tells two of the same name apart.
    """

    _kind: ClassVar[str]

    target: Target | None = None
    name: str | None = None
    label: Name | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return named(value, cls._kind)

    @field_validator("name", mode="before")
    @classmethod
    def _names_the_target(cls, value: Any, info: ValidationInfo) -> Any:
        # A registry's name is looked up, this one becomes part of studies' names as a label does.
        return value if value is None or info.data.get("target") is None else check_name(value)

    @property
    def key(self) -> str:
        """What the registry is asked for."""
        return self.target or self.name or ""


class ProblemConfig(_Item):
    """A problem; its bare name stands for ``{name: …}``, a bare ``package.module:attribute`` for ``{target: …}``.

    Attributes:
        target: ``package.module:attribute`` of anyone's own.
        name: in the registry; of a target what it is called, by default the attribute in lower case.
        label: its name in tables and studies, which tells two of the same name apart.
        args: the problem's own arguments.
    """

    _kind: ClassVar[str] = "a problem's name"

    args: dict[str, Any] = Field(default_factory=dict)


class DimensionConfig(Strict):
    """A change to one dimension of an optimizer's own space, or a whole new one; keys not given are the own space's.

    ``low`` and ``high`` are the value's own bounds, unless ``relative_to`` is given too: then they are the ratio's.

    Attributes:
        low: smallest value.
        high: largest value.
        log: whether the scale is logarithmic.
        integer: whether values are whole numbers; those of a hyperparameter that is one always are.
        choices: the only values, in place of a range.
        relative_to: another hyperparameter; what is searched is the ratio to it. null for no longer.
        complement: whether the scale is that of 1 − value: decays and momenta near 1.
        when: one other hyperparameter and its values for which this one exists; null for always.
    """

    low: Number | None = None
    high: Number | None = None
    log: bool | None = None
    integer: bool | None = Field(default=None, alias="int")
    choices: tuple[Values, ...] | None = Field(default=None, min_length=1)
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
    """An optimizer; its bare name stands for ``{name: …}``, a bare ``package.module:attribute`` for ``{target: …}``.

    Attributes:
        target: ``package.module:attribute`` of anyone's own.
        name: in the registry; of a target what it is called, by default the attribute in lower case.
        label: its name in tables and studies, which lets it stand twice with other ``space`` or ``fixed`` values.
        space: hyperparameter → range or choices; changes the optimizer's own search space.
        fixed: hyperparameter → its one value, which takes it out of the search.
    """

    _kind: ClassVar[str] = "an optimizer's name"

    space: dict[str, DimensionConfig] = Field(default_factory=dict)
    fixed: dict[str, Values] = Field(default_factory=dict)


class SamplerConfig(Strict):
    """What proposes configurations: a name, ``{name: tpe, <option>: …}``, or ``{target: …, args: {…}}``.

    Attributes:
        target: of anyone's own sampler.
        name: in the registry; of a target what it is called.
        options: the registry's sampler's options, or the target's arguments.
    """

    target: Target | None = None
    name: str = "gpyopt"
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        mapping = named(value, "a sampler's name")
        if not isinstance(mapping, Mapping):
            return mapping
        target = mapping.get("target")
        if target is None:
            options = {key: option for key, option in mapping.items() if key not in ("name", "target")}
            return {key: mapping[key] for key in mapping if key == "name"} | {"options": options}
        given = {"name": target_name(target), "args": {}} if isinstance(target, str) else {}
        given |= {key: option for key, option in mapping.items() if option is not None}
        return {"options" if key == "args" else key: option for key, option in given.items()}

    @property
    def key(self) -> str:
        """What the registry is asked for."""
        return self.target or self.name

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        if self.target is None:
            return {"name": self.name, **self.options}
        return {"name": self.name, "target": self.target, "args": self.options}


class StudyConfig(Strict):
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
        limit: where the whole file stops, though its studies may not have all their trials.
        racing: whether hopeless trials are not repeated; None for no.
        pruner: what stops runs that fall behind; None for nothing.
        warm_start: earlier studies whose best configurations are tried first.
        micro_batch: ``"auto"`` cuts batches that do not fit in the device's memory into micro-batches that do, a number
            any batch into ones of at most so many examples; None leaves them as they are.
        run_timeout: wall seconds, evaluations included, after which a run is stopped. None: with a budget in seconds a
            run is stopped when nothing was heard of it (no evaluation ended) for five budgets and two minutes.
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
    threads: Annotated[Literal["auto"] | int, BeforeValidator(check_threads)] = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    evaluation: EvaluationConfig = EvaluationConfig()
    limit: LimitConfig = LimitConfig()
    racing: RacingConfig | None = None
    pruner: PrunerConfig | None = None
    warm_start: WarmStarts = ()
    micro_batch: Annotated[Literal["auto"] | int, BeforeValidator(whole_or_auto)] | None = None
    run_timeout: Annotated[Number, Field(gt=0)] | None = None
    module_dir: str | None = None

    @field_validator("racing", mode="before")
    @classmethod
    def _no_racing(cls, value: Any) -> Any:
        return None if value is False else value

    @field_validator("pruner")
    @classmethod
    def _can_prune(cls, value: PrunerConfig | None, info: ValidationInfo) -> PrunerConfig | None:
        points = info.data["evaluation"].points if "evaluation" in info.data else None
        if value is not None and points is not None and value.first_step(points) >= points:
            raise ValueError(
                f"could stop no run: none is measured after {value.after:g} of its budget and before its end "
                f"(evaluation.points: {points})"
            )
        return value

    @model_validator(mode="before")
    @classmethod
    def _default_storage(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("storage") is None:
            return {**value, "storage": f"{value.get('name')}.db"}
        return value

    def code_versions(self) -> dict[str, str]:
        """Target → hash of its module's file, for the targets whose modules are in ``module_dir``."""
        named = [*(item.target for item in (*self.problems, *self.optimizers)), self.sampler.target]
        targets = [target for target in named if target is not None]
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

        Passwords in databases' URLs are left out: what is stored is shown to others.
        """
        data = self.model_dump(mode="json", by_alias=True) | {"storage": without_password(self.storage)}
        for start in data["warm_start"]:
            start["from"] = without_password(start["from"])
        return data
