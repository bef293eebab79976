"""Samplers that look at no result: random search, low-discrepancy sequences.

Trial k's configuration depends on the seed and on k only, so that any number of trials may run at once, and the first
trials of all samplers (which are random) can be compared as a fair sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from kftune.space import Space
from kftune.study.samplers._entry import SamplerEntry
from kftune.study.samplers.coordinates import distributions, from_unit, uniform, without_single


class RandomSampler(optuna.samplers.BaseSampler):
    """Every value uniform on its dimension's scale, from (seed, trial number, dimension's name) alone.

    Unlike Optuna's own, it does not repeat itself when a study is resumed with the same seed (optuna#3255).
    """

    def __init__(self, *, seed: int) -> None:
        self._seed = seed

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing: every dimension stands for itself."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing: every dimension stands for itself."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A uniform value."""
        return from_unit(param_distribution, uniform(self._seed, trial.number, param_name))


class QMCSampler(RandomSampler):
    """Trial k is the k-th point of a scrambled Sobol' or Halton sequence over all dimensions, also conditional ones.

    Args:
        search_space: every dimension.
        seed: of the scrambling.
        sequence: ``"sobol"`` or ``"halton"``.
    """

    def __init__(self, search_space: Mapping[str, BaseDistribution], *, seed: int, sequence: str) -> None:
        super().__init__(seed=seed)
        self._search_space = without_single(search_space)
        self._sequence = sequence

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Every dimension with more than one value."""
        return self._search_space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The trial's point of the sequence."""
        from scipy.stats import qmc  # slow to import

        if not search_space:
            return {}
        engine_class = qmc.Sobol if self._sequence == "sobol" else qmc.Halton
        engine = engine_class(len(search_space), scramble=True, rng=np.random.default_rng(self._seed))
        if trial.number > 0:  # Sobol' refuses to skip nothing
            engine.fast_forward(trial.number)
        point = engine.random(1)[0]
        return {name: from_unit(search_space[name], u) for name, u in zip(search_space, point, strict=True)}


def _make_random(*, space: Space, seed: int, trial_number: int, n_startup_trials: int) -> RandomSampler:
    return RandomSampler(seed=seed)


def _make_qmc(*, space: Space, seed: int, trial_number: int, n_startup_trials: int, sequence: str) -> QMCSampler:
    return QMCSampler(distributions(space), seed=seed, sequence=sequence)


ENTRIES = (
    SamplerEntry(
        name="random",
        make=_make_random,
        summary="uniform on every dimension's scale",
        source="Bergstra & Bengio 2012",
        learns=False,
    ),
    SamplerEntry(
        name="qmc",
        make=_make_qmc,
        summary="scrambled low-discrepancy sequence: random search that leaves fewer gaps",
        source="Sobol' 1967 with Owen's scrambling (scipy.stats.qmc)",
        options={"sequence": "sobol"},
        allowed={"sequence": ("sobol", "halton")},
        random_start=False,
        learns=False,
    ),
)
