"""The study file: reading it, checking it against what there is to tune and to train, and its studies."""

from kftune.study.config._devices import resolve_devices
from kftune.study.config._fields import check_name
from kftune.study.config._load import StudyLocation, config_from_dict, load_config, locate_study, parse_config
from kftune.study.config._models import (
    DimensionConfig,
    EvaluationConfig,
    OptimizerConfig,
    ProblemConfig,
    SamplerConfig,
    StudyConfig,
)
from kftune.study.config._parameters import Parameter, hyperparameters
from kftune.study.config._plans import StudyPlan, make_plans
from kftune.study.config._policies import (
    BudgetConfig,
    LimitConfig,
    PrunerConfig,
    RacingConfig,
    WarmStartConfig,
)
from kftune.study.config._storage import storage_url, without_password

__all__ = [
    "BudgetConfig",
    "DimensionConfig",
    "EvaluationConfig",
    "LimitConfig",
    "OptimizerConfig",
    "Parameter",
    "ProblemConfig",
    "PrunerConfig",
    "RacingConfig",
    "SamplerConfig",
    "StudyConfig",
    "StudyLocation",
    "StudyPlan",
    "WarmStartConfig",
    "check_name",
    "config_from_dict",
    "hyperparameters",
    "load_config",
    "locate_study",
    "make_plans",
    "parse_config",
    "resolve_devices",
    "storage_url",
    "without_password",
]
