"""Optuna's own model-based samplers, made to go on after an interruption as if there had been none."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kftune.space import Space
from kftune.study.samplers._entry import SamplerEntry
from kftune.study.samplers._observed import is_given, pruned_value, store_point, stored_point
from kftune.study.samplers.coordinates import (
    active_dimensions,
    derived_seed,
    distributions,
    from_unit,
    uniform,
    without_single,
)
from kftune.study.samplers.designs import RandomSampler


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
        if not search_space or is_given(trial, search_space):
            return {}
        point = stored_point(trial)
        if point is None:
            point = self._propose(study, trial, search_space)
            store_point(study, trial, point)
        return {name: value for name, value in point.items() if name in search_space}

    def _propose(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A uniform value for the first trials, else what the sampler makes of this dimension alone."""
        if trial.number < self._n_startup_trials:
            return super().sample_independent(study, trial, param_name, param_distribution)
        # Seeded by the name, so that it does not matter which dimensions were asked for before an interruption.
        sampler = self._make(derived_seed(self._seed, trial.number, param_name))
        return sampler.sample_independent(study, trial, param_name, param_distribution)


class FlatSampler(ReproducibleSampler):
    """The same for samplers that know neither conditions nor pruned trials: they are shown a study without either.

    In the study that they see, every trial has every dimension. One that was inactive has the value that it would have
    had: the one proposed for it, or the random one of a first trial, or the middle of its range in a trial that was
    given. The loss as a function of all dimensions then is what it is, a function that ignores some of them in places.
    A pruned trial is a complete one with a value no better than the median (:func:`pruned_value`), a failed one is not
    there.

    Args:
        make: seed → Optuna's sampler, itself without random trials at the start.
        search_space: every dimension, conditional ones included.
        seed: of the study.
        n_startup_trials: trials with a lower number are random.
        numbered: show categories as whole numbers, in the order of the choices.
    """

    def __init__(
        self,
        make: Callable[[int], optuna.samplers.BaseSampler],
        *,
        search_space: Mapping[str, BaseDistribution],
        seed: int,
        n_startup_trials: int,
        numbered: bool = False,
    ) -> None:
        super().__init__(make, seed=seed, n_startup_trials=n_startup_trials)
        self._search_space = without_single(search_space)
        self._numbered = numbered

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Every dimension with more than one value; none for the first trials."""
        return {} if trial.number < self._n_startup_trials else self._search_space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The stored point if there is one, else a new one."""
        self._raise_error_if_multi_objective(study)
        return super().sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A uniform value for the first trials, else what the sampler makes of this dimension alone."""
        self._raise_error_if_multi_objective(study)
        return super().sample_independent(study, trial, param_name, param_distribution)

    def _propose(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        shown_space = {name: self._shown(distribution) for name, distribution in search_space.items()}
        shown = optuna.create_study(direction=study.direction, sampler=RandomSampler(seed=0))
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        complete = [t.value for t in others if t.state == TrialState.COMPLETE and t.value is not None]
        worse = min if study.direction == StudyDirection.MAXIMIZE else max
        for other in others:
            value = pruned_value(other, complete, worse=worse) if other.state == TrialState.PRUNED else other.value
            running = other.state == TrialState.RUNNING and bool(other.params)
            if running or (value is not None and other.state in (TrialState.COMPLETE, TrialState.PRUNED)):
                shown.add_trial(self._shown_trial(other, value, search_space, shown_space))
        asked = shown.ask()
        frozen = shown.get_trials(deepcopy=False)[asked.number]
        point = self._sampler(trial).sample_relative(shown, frozen, shown_space)
        # What the sampler noted down about the trial (CMA-ES its state) it must find again.
        noted = shown.get_trials(deepcopy=False)[asked.number].system_attrs
        for key, value in noted.items():
            study._storage.set_trial_system_attr(trial._trial_id, key, value)
        return {name: self._meant(search_space[name], value) for name, value in point.items()}

    def _shown(self, distribution: BaseDistribution) -> BaseDistribution:
        if self._numbered and isinstance(distribution, CategoricalDistribution):
            return IntDistribution(0, len(distribution.choices) - 1)
        return distribution

    def _meant(self, distribution: BaseDistribution, value: Any) -> Any:
        if self._numbered and isinstance(distribution, CategoricalDistribution):
            return distribution.choices[value]
        return value

    def _shown_trial(
        self,
        trial: FrozenTrial,
        value: float | None,
        search_space: Mapping[str, BaseDistribution],
        shown_space: dict[str, BaseDistribution],
    ) -> FrozenTrial:
        point = (stored_point(trial) or {}) | trial.params
        params = {}
        for name, distribution in search_space.items():
            if name in point:
                params[name] = point[name]
            else:
                random = trial.number < self._n_startup_trials and not is_given(trial)
                unit = uniform(self._seed, trial.number, name) if random else 0.5
                params[name] = from_unit(distribution, unit)
            if shown_space[name] is not distribution:
                params[name] = int(distribution.to_internal_repr(params[name]))
        running = trial.state == TrialState.RUNNING
        return optuna.trial.create_trial(
            state=TrialState.RUNNING if running else TrialState.COMPLETE,
            value=None if running else value,
            params=params,
            distributions=shown_space,
            system_attrs={key: attr for key, attr in trial.system_attrs.items() if not key.startswith("fixed_params")},
        )


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


def _make_gp(*, space: Space, seed: int, trial_number: int, n_startup_trials: int) -> FlatSampler:
    def make(seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=1, warn_independent_sampling=False)

    return FlatSampler(make, search_space=distributions(space), seed=seed, n_startup_trials=n_startup_trials)


def _make_cmaes(*, space: Space, seed: int, trial_number: int, n_startup_trials: int) -> FlatSampler:
    search_space = distributions(space)
    # Without a margin, a category that the distribution has left behind could not come back.
    with_margin = any(isinstance(distribution, CategoricalDistribution) for distribution in search_space.values())

    def make(seed: int) -> optuna.samplers.BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # of `with_margin`
            return optuna.samplers.CmaEsSampler(
                seed=seed, n_startup_trials=1, warn_independent_sampling=False, with_margin=with_margin
            )

    return FlatSampler(
        make, search_space=search_space, seed=seed, n_startup_trials=n_startup_trials, numbered=with_margin
    )


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
    ),
    SamplerEntry(
        name="cmaes",
        make=_make_cmaes,
        summary="covariance matrix adaptation; for many trials; categories as whole numbers",
        source="Hansen & Ostermeier 2001; Hamano et al. 2022 for categories (cmaes)",
    ),
)
