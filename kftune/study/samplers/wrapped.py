"""Optuna's own model-based samplers, made to go on after an interruption as if there had been none."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial

from kftune.space import Space
from kftune.study.samplers._coordinates import active_dimensions, derived_seed
from kftune.study.samplers._entry import SamplerEntry
from kftune.study.samplers.designs import RandomSampler

_POINT_KEY = "kftune:point"
_CHUNK = 2000  # a system attribute holds at most 2045 characters


class ReproducibleSampler(RandomSampler):
    """Random for the first trials, then one of Optuna's samplers, made anew for every trial and seeded from its number.

    The point that a trial was given is stored with it. A trial that was cut off while it was being asked then gets the
    rest of the same point, although the sampler might by now propose another.

    Args:
        make: seed → Optuna's sampler, itself without random trials at the start.
        seed: of the study.
        n_startup_trials: trials with a lower number are random.
    """

    def __init__(self, make: Callable[[int], optuna.samplers.BaseSampler], *, seed: int, n_startup_trials: int) -> None:
        super().__init__(seed=seed)
        self._make = make
        self._n_startup_trials = n_startup_trials
        self._of_trial: tuple[int, optuna.samplers.BaseSampler] | None = None

    def _sampler(self, trial: FrozenTrial) -> optuna.samplers.BaseSampler:
        # One for all calls about a trial: Optuna's remember the search space from one call to the next.
        if self._of_trial is None or self._of_trial[0] != trial.number:
            self._of_trial = (trial.number, self._make(derived_seed(self._seed, trial.number)))
        return self._of_trial[1]

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The dimensions that the sampler models jointly; none for the first trials."""
        if trial.number < self._n_startup_trials:
            return {}
        return self._sampler(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The stored point if there is one, else a new one."""
        if not search_space:
            return {}
        point = _stored_point(trial)
        if point is None:
            point = self._sampler(trial).sample_relative(study, trial, search_space)
            _store_point(study, trial, point)
        return {name: value for name, value in point.items() if name in search_space}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A uniform value for the first trials, else what the sampler makes of this dimension alone."""
        if trial.number < self._n_startup_trials:
            return super().sample_independent(study, trial, param_name, param_distribution)
        # Seeded by the name, so that it does not matter which dimensions were asked for before an interruption.
        sampler = self._make(derived_seed(self._seed, trial.number, param_name))
        return sampler.sample_independent(study, trial, param_name, param_distribution)


def _stored_point(trial: FrozenTrial) -> dict[str, Any] | None:
    attributes = trial.system_attrs
    n_chunks = attributes.get(_POINT_KEY)  # written last: if it is there, so are the chunks
    if n_chunks is None:
        return None
    point: dict[str, Any] = json.loads("".join(attributes[f"{_POINT_KEY}:{i}"] for i in range(n_chunks)))
    return point


def _store_point(study: optuna.Study, trial: FrozenTrial, point: dict[str, Any]) -> None:
    text = json.dumps(point)
    chunks = [text[i : i + _CHUNK] for i in range(0, len(text), _CHUNK)]
    # Optuna has no public way to attach system attributes; its own samplers do it like this.
    for i, chunk in enumerate(chunks):
        study._storage.set_trial_system_attr(trial._trial_id, f"{_POINT_KEY}:{i}", chunk)
    study._storage.set_trial_system_attr(trial._trial_id, _POINT_KEY, len(chunks))


def _make_tpe(
    *, space: Space, seed: int, trial_number: int, n_startup_trials: int, n_candidates: int
) -> ReproducibleSampler:
    # Groups of dimensions that are always active together are modelled jointly; without conditions there is one.
    group = any(dimension.when is not None for dimension in active_dimensions(space).values())

    def make(seed: int) -> optuna.samplers.BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # of `group`
            return optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=1, n_ei_candidates=n_candidates, multivariate=True, group=group
            )

    return ReproducibleSampler(make, seed=seed, n_startup_trials=n_startup_trials)


def _make_gp(*, space: Space, seed: int, trial_number: int, n_startup_trials: int) -> ReproducibleSampler:
    def make(seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=1, warn_independent_sampling=False)

    return ReproducibleSampler(make, seed=seed, n_startup_trials=n_startup_trials)


def _make_cmaes(*, space: Space, seed: int, trial_number: int, n_startup_trials: int) -> ReproducibleSampler:
    def make(seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=1, warn_independent_sampling=False)

    return ReproducibleSampler(make, seed=seed, n_startup_trials=n_startup_trials)


ENTRIES = (
    SamplerEntry(
        name="tpe",
        make=_make_tpe,
        summary="tree-structured Parzen estimator over all dimensions jointly; milliseconds per trial",
        source="Bergstra et al. 2011; Watanabe 2023 (Optuna)",
        options={"n_candidates": 24},
        allowed={"n_candidates": (1, 10_000)},
    ),
    SamplerEntry(
        name="optuna_gp",
        make=_make_gp,
        summary="Optuna's Gaussian process with log expected improvement; seconds per trial after a hundred",
        source="Ament et al. 2023 (Optuna's GPSampler)",
        conditional=False,
    ),
    SamplerEntry(
        name="cmaes",
        make=_make_cmaes,
        summary="covariance matrix adaptation; for many trials of numerical dimensions",
        source="Hansen & Ostermeier 2001 (cmaes)",
        conditional=False,
        categorical=False,
    ),
)
