"""What a study file amounts to, before anything of it is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kftune._targets import is_target
from kftune.cli._output import counted, print_table, say
from kftune.dashboard.formatting import duration

if TYPE_CHECKING:
    from kftune.study.config import StudyConfig, StudyPlan

__all__ = ["print_summary", "summary"]


def summary(config: StudyConfig, plans: Sequence[StudyPlan]) -> dict[str, Any]:
    """Plain data: the studies, and the training seconds of all of them together (None if the budget is in updates)."""
    n_runs = len(plans) * config.trials * config.repeats
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
            }
            for plan in plans
        ],
        "n_trials": len(plans) * config.trials,
        "n_runs": n_runs,
        "train_seconds": None if seconds is None else n_runs * seconds,
    }


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
    say(
        f"\n{counted(config.trials, 'trial')} of each × {counted(config.repeats, 'run')} × {budget}, "
        f"sampler {config.sampler.name}, objective {config.objective}"
    )
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
