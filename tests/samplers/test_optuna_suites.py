"""The test suites that Optuna ships for samplers, on ours."""

from __future__ import annotations

from collections.abc import Callable

import optuna
import pytest
from optuna.distributions import BaseDistribution
from optuna.search_space import IntersectionSearchSpace
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)
from optuna.trial import FrozenTrial

from kftune.study.samplers._gpyopt_adapter import GPyOptSettings
from kftune.study.samplers.designs import QMCSampler, RandomSampler
from kftune.study.samplers.gpyopt import GPyOptSampler
from kftune.study.samplers.wrapped import FlatSampler, ReproducibleSampler

# They fit a model for hundreds of trials.
pytestmark = pytest.mark.timeout(600)


class _InferringGPyOptSampler(GPyOptSampler):
    """The suites define by running: what there is to search is what past trials had."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return IntersectionSearchSpace().calculate(study)


class TestGPyOptSampler(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], optuna.samplers.BaseSampler]:
        return lambda: _InferringGPyOptSampler({}, seed=0, n_startup_trials=0)


class TestReproducibleSampler(BasicSamplerTestCase, RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], optuna.samplers.BaseSampler]:
        def make(seed: int) -> optuna.samplers.BaseSampler:
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=1)

        return lambda: ReproducibleSampler(make, seed=0, n_startup_trials=0)


class _InferringFlatSampler(FlatSampler):
    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return IntersectionSearchSpace().calculate(study)


class TestFlatSamplerOfGP(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], optuna.samplers.BaseSampler]:
        def make(seed: int) -> optuna.samplers.BaseSampler:
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=1, warn_independent_sampling=False)

        return lambda: _InferringFlatSampler(make, search_space={}, seed=0, n_startup_trials=0)


class TestFlatSamplerOfCmaEs(BasicSamplerTestCase, RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], optuna.samplers.BaseSampler]:
        # Without the margin: with it, the search space may not change as it does here.
        def make(seed: int) -> optuna.samplers.BaseSampler:
            return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=1, warn_independent_sampling=False)

        return lambda: _InferringFlatSampler(make, search_space={}, seed=0, n_startup_trials=0, numbered=True)


class TestFaithfulGPyOptSampler(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], optuna.samplers.BaseSampler]:
        settings = GPyOptSettings(faithful=True)
        return lambda: _InferringGPyOptSampler({}, seed=0, n_startup_trials=0, settings=settings)


class TestRandomSampler(BasicSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], optuna.samplers.BaseSampler]:
        return lambda: RandomSampler(seed=0)


class TestQMCSampler(RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], optuna.samplers.BaseSampler]:
        return lambda: QMCSampler({}, seed=0, sequence="sobol")
