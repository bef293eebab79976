"""Which hyperparameters mattered: fANOVA importance (Hutter, Hoos & Leyton-Brown 2014), with its uncertainty.

The importance of a hyperparameter is the share of the loss's variance over the search box that it explains on its
own, as a random forest sees it (Optuna's ``FanovaImportanceEvaluator``). The forest is fitted to few trials, so the
shares are uncertain; how much, a bootstrap over the trials says, each resample (of 300 trials at most) with a forest of
its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial

from kftune.analysis.stored.results import StudyResults
from kftune.analysis.tuning.box import distributions_of

__all__ = ["Importance", "hyperparameter_importances"]

_AT_LEAST = 8
_N_TREES = 8
_MAX_DEPTH = 5  # Optuna's marginals cost the square of the leaves
_MAX_TRIALS = 300  # of a resample


@dataclass(frozen=True, kw_only=True)
class Importance:
    """One hyperparameter of one study.

    Attributes:
        sampled_name: what the sampler varied.
        importance: median over the resamples; all shares of one resample add up to 1.
        low: 5th percentile over the resamples.
        high: 95th percentile.
    """

    sampled_name: str
    importance: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def hyperparameter_importances(study: StudyResults, *, n_resamples: int = 10, seed: int = 0) -> list[Importance]:
    """Importances of a study's hyperparameters, the greatest first; empty with fewer than 8 settled trials.

    Failed trials count with the untrained model's loss, pruned ones not at all. Hyperparameters that are not active
    in every trial have no importance of this kind and are left out.

    Args:
        study: curves are not needed.
        n_resamples: of the bootstrap over trials.
        seed: of its random numbers and of the forests.
    """
    trials = _trials(study)
    values = {trial.value for trial in trials}
    if len(trials) < _AT_LEAST or len(values) < 2:
        return []
    names = list(trials[0].params)
    rng = np.random.default_rng(seed)
    shares: list[list[float]] = []
    while len(shares) < n_resamples:
        chosen = [trials[i] for i in rng.integers(len(trials), size=min(len(trials), _MAX_TRIALS))]
        if len({trial.value for trial in chosen}) > 1:
            shares.append(_shares(chosen, names, seed=int(rng.integers(2**31))))
    low, middle, high = np.quantile(np.array(shares), [0.05, 0.5, 0.95], axis=0)
    found = [
        Importance(sampled_name=name, importance=float(middle[i]), low=float(low[i]), high=float(high[i]))
        for i, name in enumerate(names)
    ]
    return sorted(found, key=lambda importance: -importance.importance)


def _trials(study: StudyResults) -> list[FrozenTrial]:
    """The study's trials for Optuna, with the hyperparameters that all of them have."""
    known = distributions_of(study.record)
    usable = [t for t in study.finished if t.trial.value is not None and not t.is_pruned]
    common = [
        name
        for name, distribution in known.items()
        if all(name in t.trial.params and _holds(distribution, t.trial.params[name]) for t in usable)
    ]
    if not common:
        return []
    return [
        optuna.trial.create_trial(
            value=t.trial.value,
            params={name: t.trial.params[name] for name in common},
            distributions={name: known[name] for name in common},
        )
        for t in usable
    ]


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a stored value is in the box, which may have been another when the trial was made."""
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return value in distribution.choices
    return bool(distribution._contains(distribution.to_internal_repr(value)))


def _shares(trials: Sequence[FrozenTrial], names: Sequence[str], *, seed: int) -> list[float]:
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    study.add_trials(trials)
    found = FanovaImportanceEvaluator(n_trees=_N_TREES, max_depth=_MAX_DEPTH, seed=seed).evaluate(
        study, params=list(names)
    )
    total = sum(found.values())
    return [found[name] / total if total > 0 else 1 / len(names) for name in names]
