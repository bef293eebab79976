"""From a study file to its studies: names looked up, spaces resolved."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from kftune._registry import Named, Registry
from kftune._targets import importable_from, target_name
from kftune.errors import UsageError, suggestion
from kftune.space import Space
from kftune.study.config._flaws import Flaws, Location, show, unknown
from kftune.study.config._limits import accepted_part
from kftune.study.config._spaces import make_space

if TYPE_CHECKING:
    from kftune.optim import OptimizerEntry
    from kftune.problems import OwnProblem, ProblemEntry
    from kftune.study.config._models import OptimizerConfig, ProblemConfig, SamplerConfig, StudyConfig
    from kftune.study.samplers import SamplerEntry

__all__ = ["StudyPlan", "make_plans", "plans_and_flaws"]

T = TypeVar("T", bound=Named)

_SHARED = ("repeats", "startup_trials", "objective", "seed", "threads", "dtype", "evaluation")
"""Keys of the study file, beside the budget's and the sampler's, that decide what a trial of any of its studies is."""

_SHARED_IF_SET = ("racing", "pruner", "micro_batch")


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """One study: a (problem, optimizer) pair of a study file.

    Attributes:
        study: full name of the Optuna study, ``<file name>/<problem>/<optimizer>``.
        problem: the problem's label.
        problem_name: its name in the registry, or its target.
        problem_args: its arguments.
        n_train: how many training examples it has.
        optimizer: the optimizer's label.
        optimizer_name: its name in the registry, or its target.
        space: its own space with the file's ``space`` and ``fixed`` applied, batch sizes within the problem's.
        widest: what trials are asked for where the sampler may leave ``space`` (a grid that extends itself), else None.
        shared: what the studies of the file have in common and may not change either.
    """

    study: str
    problem: str
    problem_name: str
    problem_args: Mapping[str, Any]
    n_train: int
    optimizer: str
    optimizer_name: str
    space: Space
    widest: Space | None = None
    shared: Mapping[str, Any] = field(default_factory=dict)

    def largest_batch(self) -> int:
        """The most examples behind one update of any of its configurations."""
        largest = self.space.largest()
        batch = largest.get("batch_size") or 0
        effective = largest.get("effective_batch_size") or batch * (largest.get("accumulation") or 1)
        return int(max(batch, effective))

    def identity(self) -> dict[str, Any]:
        """Plain data of everything that must not change between the sessions of a study."""
        return {
            **self.shared,
            "problem": {"name": self.problem_name, "args": dict(self.problem_args)},
            "optimizer": self.optimizer_name,
            "space": self.space.to_dict(),
        }


def make_plans(config: StudyConfig) -> tuple[StudyPlan, ...]:
    """The studies of a study file, in its order: for every problem, every optimizer. Imports torch.

    Raises:
        ConfigError: a name, value or range that the registries' entries do not allow.
        UserCodeError: a target's own code failed.
    """
    plans, flaws = plans_and_flaws(config)
    flaws.raise_if_any()
    return plans


def plans_and_flaws(config: StudyConfig) -> tuple[tuple[StudyPlan, ...], Flaws]:
    """The studies of a file, and what is wrong with it where they could not be made.

    Raises:
        UserCodeError: a target's own code failed.
    """
    with importable_from(config.module_dir):
        return _plans_and_flaws(config)


def _plans_and_flaws(config: StudyConfig) -> tuple[tuple[StudyPlan, ...], Flaws]:
    from kftune.optim import OPTIMIZERS
    from kftune.problems import PROBLEMS, find_problem

    flaws = Flaws()
    found = _found(config.problems, "problems", "problem", PROBLEMS, flaws, get=find_problem)
    optimizers = _found(config.optimizers, "optimizers", "optimizer", OPTIMIZERS, flaws, get=OPTIMIZERS.get)
    problem_labels = _labels(config.problems, found, "problems", flaws)
    problems = _with_args(config.problems, found, flaws)
    optimizer_labels = _labels(config.optimizers, optimizers, "optimizers", flaws)
    sampler, options = _sampler(config, flaws)
    plain = config.to_dict()
    shared = {"budget": config.budget.identity()} | {key: plain[key] for key in _SHARED}
    shared |= {key: plain[key] for key in _SHARED_IF_SET if plain[key] is not None}
    shared |= {"sampler": {"name": config.sampler.name, **options}}
    plans = []
    for i, j in itertools.product(problems, optimizers):
        problem, (entry, args) = config.problems[i], problems[i]
        optimizer = config.optimizers[j]
        if config.objective == "test_error" and not entry.has_accuracy:
            flaws.add(("objective",), f"test_error needs an accuracy, which {entry.name} has not")
        plan = StudyPlan(
            study=f"{config.name}/{problem_labels[i]}/{optimizer_labels[j]}",
            problem=problem_labels[i],
            problem_name=problem.key,
            problem_args=args,
            n_train=entry.n_train,
            optimizer=optimizer_labels[j],
            optimizer_name=optimizer.key,
            space=make_space(
                optimizer,
                entry=optimizers[j],
                problem=entry,
                location=("optimizers", j),
                flaws=flaws,
                total_updates=config.budget.updates,
            ),
            shared=shared,
        )
        if sampler is not None:
            _check_searchable(sampler, plan, flaws)
            plan = replace(plan, widest=_widest(sampler, config, plan.space, optimizers[j], flaws))
        plans.append(plan)
    return tuple(plans), flaws


def _sampler(config: StudyConfig, flaws: Flaws) -> tuple[SamplerEntry | None, dict[str, Any]]:
    """The sampler and those of its options that are not at their default; None if there is a flaw."""
    from kftune.study.samplers import SAMPLERS

    if config.sampler.target is not None:
        return _own_sampler(config.sampler, flaws)
    name = config.sampler.name
    if name not in SAMPLERS:
        flaws.add(("sampler",), unknown("sampler", name, SAMPLERS.names()))
        return None, {}
    entry, n_before = SAMPLERS.get(name), len(flaws)
    for option, value in config.sampler.options.items():
        try:
            entry.resolve_options({option: value})
        except UsageError as error:
            flaws.add(("sampler", option), str(error))
    changed = {option: v for option, v in config.sampler.options.items() if v != entry.options.get(option)}
    return (entry if len(flaws) == n_before else None), changed


def _own_sampler(config: SamplerConfig, flaws: Flaws) -> tuple[SamplerEntry | None, dict[str, Any]]:
    """The same for a target, which is made once to see whether it can be."""
    from kftune.study.samplers import SAMPLERS, TargetSamplerEntry

    try:
        entry = SAMPLERS.get(config.key)
    except UsageError as error:
        flaws.add(("sampler", "target"), str(error))
        return None, {}
    try:
        args = entry.resolve_options(config.options)
        if isinstance(entry, TargetSamplerEntry):
            entry.construct(0, args)
    except UsageError as error:
        flaws.add(("sampler", "args"), str(error))
        return None, {}
    changed = {name: value for name, value in config.options.items() if value != entry.options.get(name)}
    return entry, {"target": config.target} | ({"args": changed} if changed else {})


def _check_searchable(sampler: SamplerEntry, plan: StudyPlan, flaws: Flaws) -> None:
    """A sampler that cannot search a dimension would draw it at random, and say nothing."""
    try:
        sampler.check_space(plan.space)
    except UsageError as error:
        flaws.add(("sampler",), f"{error} ({plan.optimizer})")


def _widest(
    sampler: SamplerEntry, config: StudyConfig, space: Space, entry: OptimizerEntry, flaws: Flaws
) -> Space | None:
    """See :attr:`StudyPlan.widest`."""
    if sampler.widen is None or len(flaws):
        return None
    return accepted_part(
        space, widest=sampler.widen(space, sampler.resolve_options(config.sampler.options)), entry=entry
    )


def _labels(
    items: Sequence[ProblemConfig | OptimizerConfig], found: Mapping[int, Named], key: str, flaws: Flaws
) -> list[str]:
    """What each item is called in studies' names; two of one label are a flaw."""
    labels = [
        item.label or item.name or (found[i].name if i in found else target_name(item.key))
        for i, item in enumerate(items)
    ]
    for i, label in enumerate(labels):
        if label in labels[:i]:
            flaws.add((key, i), f"{show(label)} stands twice; give one of them a label of its own")
    return labels


def _found(
    items: Sequence[ProblemConfig | OptimizerConfig],
    key: str,
    kind: str,
    registry: Registry[Any],
    flaws: Flaws,
    *,
    get: Callable[[str], T],
) -> dict[int, T]:
    """Index → entry of the items whose names are in the registry or whose targets can be used; others are flaws."""
    found = {}
    for i, item in enumerate(items):
        if item.target is None and item.name is None:
            flaws.add((key, i, "name"), "is missing")
        elif item.target is None and item.key not in registry:
            flaws.add((key, i, "name"), unknown(kind, item.key, registry.names()))
        else:
            try:
                found[i] = get(item.key)
            except UsageError as error:
                flaws.add((key, i, "target"), str(error))
    return found


def _with_args(
    items: Sequence[ProblemConfig], found: Mapping[int, ProblemEntry | OwnProblem], flaws: Flaws
) -> dict[int, tuple[ProblemEntry, dict[str, Any]]]:
    """Index → the problem as its arguments make it, and those that were changed; what cannot be made is a flaw."""
    from kftune.problems import counted

    made = {}
    for i, problem in found.items():
        n_before = len(flaws)
        where = ("problems", i, "args")
        args = _changed_args(items[i], problem, where, flaws)
        if len(flaws) > n_before:
            continue
        try:
            made[i] = counted(problem, args), args
        except UsageError as error:
            flaws.add(where if args else ("problems", i, "target"), str(error))
    return made


def _changed_args(
    problem: ProblemConfig, entry: ProblemEntry | OwnProblem, location: Location, flaws: Flaws
) -> dict[str, Any]:
    """The given arguments that differ from their defaults; unknown names and other types than theirs are flaws.

    Arguments at their default are left out, so that saying one or not saying it is the same study.
    """
    defaults = entry.args
    for name, value in problem.args.items():
        where = (*location, name)
        if name not in defaults:
            hint = suggestion(name, defaults) if defaults else "; it takes none"
            flaws.add(where, f"problem {entry.name!r} has no argument {name!r}{hint}")
        elif (expected := _expected(value, defaults[name])) is not None:
            flaws.add(where, f"must be {expected}, got {show(value)}")
    return {name: value for name, value in problem.args.items() if name in defaults and value != defaults[name]}


def _expected(value: Any, default: Any) -> str | None:
    """What an argument should have been, going by its default's type; None if it is fine."""
    if default is None or (isinstance(value, type(default)) and not isinstance(value, bool)):
        return None
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, int):
        return "a whole number"
    if isinstance(default, float):
        return None if isinstance(value, int) and not isinstance(value, bool) else "a number"
    return "text" if isinstance(default, str) else f"a {type(default).__name__}"
