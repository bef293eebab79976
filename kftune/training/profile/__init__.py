"""What a step of each optimizer costs on this machine, as a multiple of a step of torch's SGD."""

from kftune.training.profile._results import (
    Contestant,
    Machine,
    OptimizerProfile,
    Profile,
    ProfileSpec,
    Progress,
    Quartiles,
    Round,
)
from kftune.training.profile._run import profile

__all__ = [
    "Contestant",
    "Machine",
    "OptimizerProfile",
    "Profile",
    "ProfileSpec",
    "Progress",
    "Quartiles",
    "Round",
    "profile",
]
