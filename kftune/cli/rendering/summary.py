"""What a study file amounts to, before anything of it is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kftune._targets import importable_from, is_target
from kftune.progress.output import counted, print_table, say
from kftune.wording import duration

if TYPE_CHECKING:
    from kftune.study.config import StudyConfig, StudyPlan

__all__ = ["print_summary", "summary"]


def summary(config: StudyConfig, plans: Sequence[StudyPlan]) -> dict[str, Any]:
    """Plain data: the studies, and the training seconds of all of them together (None if the budget is in updates).

    ``n_trials`` and what follows from it are within ``limit.trials``; a grid counts before it grows.
    """
    counts = [_n_trials(config, plan) for plan in plans]
    n_trials = min(sum(counts), config.limit.trials or sum(counts))
    n_runs = n_trials * config.repeats
    seconds = config.budget.seconds
    return {
        "name": config.name,
        "storage": config.to_dict()["storage"],
        "studies": [
            {
                "study": plan.study,
                "problem": plan.problem,
                "optimizer": plan.optimizer,
                "problem_name": plan.problem_name,
                "optimizer_name": plan.optimizer_name,
                "dimensions": [d.sampled_name(name) for name, d in plan.space.dimensions.items()],
                "fixed": dict(plan.space.fixed),
                "n_trials": count,
            }
            for plan, count in zip(plans, counts, strict=True)
        ],
        "limit": config.to_dict()["limit"],
        "n_trials": n_trials,
        "n_runs": n_runs,
        "train_seconds": None if seconds is None else n_runs * seconds,
    }


def _n_trials(config: StudyConfig, plan: StudyPlan) -> int:
    """How many trials a study will have; a grid may have fewer configurations than were asked for."""
    from kftune.study.samplers import planned_trials

    with importable_from(config.module_dir):
        return planned_trials(
            config.sampler.key,
            options=config.sampler.options,
            space=plan.space,
            widest=plan.widest,
            seed=config.seed,
            trials=(),
            most=config.trials,
        )


def print_summary(config: StudyConfig, plans: Sequence[StudyPlan]) -> None:
    """Print :func:`summary` for people."""
    found = summary(config, plans)
    say(f"{config.name}: {counted(len(plans), 'study', 'studies')}", bold=True)
    print_table(
        ("problem", "optimizer", "searched", "fixed"),
        [
            (
                study["problem"],
                study["optimizer"],
                ", ".join(study["dimensions"]) or "–",
                ", ".join(f"{name}={value}" for name, value in study["fixed"].items()) or "–",
            )
            for study in found["studies"]
        ],
        wrap=("searched", "fixed"),
    )
    for name, target in _targets(found["studies"]).items():
        say(f"{name} is {target}", whole=True)
    budget = f"{config.budget.updates} updates" if config.budget.seconds is None else duration(config.budget.seconds)
    counts = sorted({study["n_trials"] for study in found["studies"]})
    n_trials = counted(counts[0], "trial") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} trials"
    say(
        f"\n{n_trials} of each × {counted(config.repeats, 'run')} × {budget}, "
        f"sampler {config.sampler.name}, objective {config.objective}"
    )
    limit = [] if config.limit.trials is None else [f"after {counted(config.limit.trials, 'trial')} of all studies"]
    limit += [] if config.limit.hours is None else [f"after {config.limit.hours:g} h of wall time"]
    if limit:
        say(f"stops {' or '.join(limit)}")
    if counts[0] < config.trials:
        say(f"the grid has no more configurations; if it grows, at most {config.trials} trials of each")
    total = found["train_seconds"]
    say(
        f"{counted(found['n_runs'], 'run')} in all"
        + (f", {duration(total)} of training (evaluation and start-up come on top)" if total is not None else "")
    )
    say(f"database: {found['storage']}", whole=True)


def _targets(studies: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Label → target, of what no registry knows."""
    return {
        study[kind]: study[f"{kind}_name"]
        for kind in ("problem", "optimizer")
        for study in studies
        if is_target(study[f"{kind}_name"])
    }
