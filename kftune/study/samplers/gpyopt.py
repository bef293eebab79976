"""Bayesian optimization with Gaussian processes: GPyOpt as it comes, and the same without its weaknesses."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from kftune.space import Space, Value
from kftune.study.samplers import _gpyopt_adapter
from kftune.study.samplers._acquisition import (
    Acquisition,
    expected_improvement,
    improvement_probability,
    lower_bound,
    maximize,
)
from kftune.study.samplers._columns import Columns, Points, Vector, decode, encode, make_columns
from kftune.study.samplers._entry import SamplerEntry
from kftune.study.samplers._gaussian_process import GaussianProcess, warped_values
from kftune.study.samplers._gpyopt_adapter import GPyOptSettings
from kftune.study.samplers._observed import is_given, observations, pending
from kftune.study.samplers.coordinates import conditions, derived_seed, distributions, without_single
from kftune.study.samplers.designs import RandomSampler

_logger = logging.getLogger(__name__)


class GPyOptSampler(RandomSampler):
    """Random for the first trials, then the maximum of an acquisition function over all dimensions.

    In both modes:

    * a dimension is what its scale makes of it (logarithms on a log scale), brought to [0, 1]; categories are numbered;
    * a dimension that is inactive in a trial stands at its middle, or at its first category, and the model predicts the
      same whatever stands there;
    * a pruned trial counts as no better than the median, see :func:`observations`; a failed one does not count.

    ``faithful`` is GPyOpt itself: the values as they are (not finite ones as the worst finite one), one length scale
    for all dimensions, whole numbers continuous and rounded afterwards, and trials still running count as if they had
    given the mean value. Without it, the same kernel and noise, with a length scale per dimension and priors, are
    fitted (:func:`fit`) to values whose bad half is compressed (:func:`warped_values`); whole numbers of few values are
    searched as such; the improvement is weighed by what an observation would teach, and maximized from more starts
    (:func:`maximize`); trials still running count as if they had given what the model expects of them.

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
        if trial.number < self._n_startup_trials or not search_space or is_given(trial, search_space):
            return {}
        observed = observations(study)
        if not observed:
            return {}
        sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
        try:
            point = self._propose(
                np.array([encode(search_space, params) for params, _ in observed]),
                [sign * value for _, value in observed],
                pending=np.array([encode(search_space, params) for params in pending(study, besides=trial)]),
                columns=make_columns(search_space, self._conditions),
                seed=derived_seed(self._seed, trial.number),
            )
        except np.linalg.LinAlgError as error:
            _logger.warning("trial %d is random: the Gaussian process has no solution (%s)", trial.number, error)
            return {}
        return decode(search_space, point)

    def _propose(
        self, points: Points, values: Sequence[float], *, pending: Points, columns: Columns, seed: int
    ) -> Vector:
        """See :func:`propose` and GPyOpt's in :mod:`_gpyopt_adapter`."""
        if not self._settings.faithful:
            return propose(points, values, pending=pending, columns=columns, settings=self._settings, seed=seed)
        modelled = finite_values(values)
        if len(pending):
            points = np.concatenate([points, pending])
            modelled = np.concatenate([modelled, np.full(len(pending), modelled.mean())])
        return _gpyopt_adapter.propose(points, modelled, columns=columns, settings=self._settings, seed=seed)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A uniform value."""
        self._raise_error_if_multi_objective(study)
        return super().sample_independent(study, trial, param_name, param_distribution)


def propose(
    points: Points, values: Sequence[float], *, pending: Points, columns: Columns, settings: GPyOptSettings, seed: int
) -> Vector:
    """The point at which the acquisition function is largest.

    Args:
        points: observed points (n, d).
        values: their values (n,), to be minimized.
        pending: points (m, d) whose values are not known yet.
        columns: of the points.
        settings: see there.
        seed: of the search.

    Returns:
        A point (d,); its inactive columns are neutral.

    Raises:
        numpy.linalg.LinAlgError: the model's covariance cannot be factorized.
    """
    model = GaussianProcess(points, warped_values(values), columns=columns)
    if len(pending):
        model = model.with_assumed(columns.settled(pending))
    # The best of what is expected, not of what was seen, which owes something to luck.
    least = float(model.predict(model.points)[0].min())
    return maximize(model, _acquisition(settings, model, least), columns=columns, seed=seed)


def _acquisition(settings: GPyOptSettings, model: GaussianProcess, least: float) -> Acquisition:
    if settings.acquisition == "LCB":
        return lower_bound(settings.exploration_weight)
    if settings.acquisition == "MPI":
        return improvement_probability(least - settings.jitter)
    return expected_improvement(least - settings.jitter, noise=math.sqrt(model.hyperparameters.noise))


def finite_values(values: Sequence[float]) -> NDArray[np.float64]:
    """Values with +inf as the largest finite one and -inf as the smallest; zeros if none is finite."""
    observed = np.array(values, dtype=np.float64)
    finite = observed[np.isfinite(observed)]
    if not len(finite):
        return np.zeros_like(observed)
    clipped: NDArray[np.float64] = np.clip(observed, finite.min(), finite.max())
    return clipped


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
        summary="Gaussian process (Matérn 5/2) with expected improvement; a fraction of a second per trial",
        source="The GPyOpt authors 2016; with `faithful` as used by Ulbæk 2022",
        options={"acquisition": "EI", "jitter": 0.01, "exploration_weight": 2.0, "faithful": False},
        allowed={"acquisition": ("EI", "MPI", "LCB"), "jitter": (0.0, 10.0), "exploration_weight": (0.0, 100.0)},
    ),
)
