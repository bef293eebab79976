"""Bayesian optimization with GPyOpt's Gaussian process, as an Optuna sampler."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kftune.space import Space, Value
from kftune.study.samplers._coordinates import (
    conditions,
    derived_seed,
    distributions,
    from_unit,
    to_unit,
    without_single,
)
from kftune.study.samplers._entry import SamplerEntry
from kftune.study.samplers._gpyopt_adapter import Columns, GPyOptSettings, propose
from kftune.study.samplers.designs import RandomSampler

_logger = logging.getLogger(__name__)


class GPyOptSampler(RandomSampler):
    """Random for the first trials, then the maximum of GPyOpt's acquisition function over all dimensions.

    How the traps of GPyOpt are avoided:

    * a dimension is what its scale makes of it (logarithms on a log scale), brought to [0, 1]; whole numbers are
      continuous in the model and rounded afterwards; categories are numbered;
    * a dimension that is inactive in a trial stands at its middle, or at its first category;
    * a value that is not finite counts as the worst finite one; values are modelled as logarithms (losses span
      orders of magnitude) unless ``faithful``;
    * trials still running count as if they had given the mean value (constant liar; Ginsbourger et al. 2010), so that
      parallel asks differ.

    Args:
        search_space: every dimension, conditional ones included.
        seed: of the study.
        n_startup_trials: trials with a lower number are random.
        settings: see :class:`GPyOptSettings`.
        conditions: conditional dimension → another one before it, and the values of that which activate it.
    """

    def __init__(
        self,
        search_space: Mapping[str, BaseDistribution],
        *,
        seed: int,
        n_startup_trials: int,
        settings: GPyOptSettings | None = None,
        conditions: Mapping[str, tuple[str, tuple[Value, ...]]] | None = None,
    ) -> None:
        super().__init__(seed=seed)
        self._search_space = without_single(search_space)
        self._n_startup_trials = n_startup_trials
        self._settings = settings or GPyOptSettings()
        self._conditions = conditions or {}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Every dimension with more than one value."""
        return self._search_space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The acquisition function's maximum; nothing (then every dimension is random) as long as there is no model."""
        self._raise_error_if_multi_objective(study)
        search_space = without_single(search_space)
        if trial.number < self._n_startup_trials or not search_space:
            return {}
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        observed = [other for other in others if other.state == TrialState.COMPLETE]
        if not observed:
            return {}
        values = modelled_values([_to_minimize(study, other) for other in observed], log=not self._settings.faithful)
        running = [other for other in others if other.state == TrialState.RUNNING and other.params]
        try:
            point = propose(
                np.array([_encode(search_space, other) for other in (*observed, *running)]),
                np.concatenate([values, np.full(len(running), values.mean())]),
                columns=self._columns(search_space),
                settings=self._settings,
                seed=derived_seed(self._seed, trial.number),
            )
        except np.linalg.LinAlgError as error:
            _logger.warning("trial %d is random: the Gaussian process has no solution (%s)", trial.number, error)
            return {}
        return {
            name: _decode(search_space[name], coordinate) for name, coordinate in zip(search_space, point, strict=True)
        }

    def _columns(self, search_space: Mapping[str, BaseDistribution]) -> Columns:
        names = list(search_space)
        gates = [
            (names.index(name), names.index(other), values)
            for name, (other, values) in self._conditions.items()
            if name in search_space and other in search_space
        ]

        def inactive(points: NDArray[np.float64]) -> NDArray[np.bool_]:
            mask = np.zeros(points.shape, dtype=np.bool_)
            for column, other, values in gates:  # in the space's order: what others depend on comes first
                controlling = search_space[names[other]]
                holds = [_decode(controlling, coordinate) in values for coordinate in points[:, other]]
                mask[:, column] = mask[:, other] | ~np.array(holds)
            return mask

        return Columns(
            n_categories=[_n_categories(distribution) for distribution in search_space.values()],
            neutral=[_neutral(distribution) for distribution in search_space.values()],
            inactive=inactive if gates else None,
        )

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A uniform value."""
        self._raise_error_if_multi_objective(study)
        return super().sample_independent(study, trial, param_name, param_distribution)


def modelled_values(values: Sequence[float], *, log: bool) -> NDArray[np.float64]:
    """Observed values as the model should see them.

    +inf becomes the largest finite value and -inf the smallest. With ``log``, logarithms are taken if no value is
    negative; zeros then count as half the smallest positive value.
    """
    observed = np.array(values, dtype=np.float64)
    finite = observed[np.isfinite(observed)]
    if not len(finite):
        return np.zeros_like(observed)
    observed = np.clip(observed, finite.min(), finite.max())
    positive = observed[observed > 0]
    if not log or not len(positive) or observed.min() < 0:
        return observed
    logarithms: NDArray[np.float64] = np.log(np.maximum(observed, positive.min() / 2))
    return logarithms


def _to_minimize(study: optuna.Study, trial: FrozenTrial) -> float:
    value = trial.value
    assert value is not None  # the trial is complete
    return -value if study.direction == StudyDirection.MAXIMIZE else value


def _n_categories(distribution: BaseDistribution) -> int | None:
    return len(distribution.choices) if isinstance(distribution, CategoricalDistribution) else None


def _neutral(distribution: BaseDistribution) -> float:
    """What stands for a dimension that is inactive."""
    return 0.0 if isinstance(distribution, CategoricalDistribution) else 0.5


def _encode(search_space: Mapping[str, BaseDistribution], trial: FrozenTrial) -> list[float]:
    """A trial as a row: unit coordinates, numbers of categories."""
    row = []
    for name, distribution in search_space.items():
        if name not in trial.params:
            row.append(_neutral(distribution))
        elif isinstance(distribution, CategoricalDistribution):
            row.append(float(distribution.to_internal_repr(trial.params[name])))
        else:
            row.append(to_unit(distribution, trial.params[name]))
    return row


def _decode(distribution: BaseDistribution, coordinate: float) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[round(coordinate)]
    return from_unit(distribution, coordinate)


def _make(*, space: Space, seed: int, trial_number: int, n_startup_trials: int, **options: Any) -> GPyOptSampler:
    return GPyOptSampler(
        distributions(space),
        seed=seed,
        n_startup_trials=n_startup_trials,
        settings=GPyOptSettings(**options),
        conditions=conditions(space),
    )


ENTRIES = (
    SamplerEntry(
        name="gpyopt",
        make=_make,
        summary="Gaussian process (Matérn 5/2) with expected improvement; about a second per trial",
        source="The GPyOpt authors 2016, as used by Ulbæk 2022",
        options={"acquisition": "EI", "jitter": 0.01, "exploration_weight": 2.0, "faithful": False},
        allowed={"acquisition": ("EI", "MPI", "LCB"), "jitter": (0.0, 10.0), "exploration_weight": (0.0, 100.0)},
    ),
)
