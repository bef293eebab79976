"""Whose a hyperparameter of a configuration is: the optimizer's or the training loop's."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kftune.results import LOOP_PARAMETERS

if TYPE_CHECKING:
    from kftune.optim import OptimizerEntry
    from kftune.space import Value

__all__ = ["loop_parameters", "split_by_owner"]


def loop_parameters(entry: OptimizerEntry) -> tuple[str, ...]:
    """The training loop's: a name that the constructor takes itself (``warmup``, say) is the optimizer's own."""
    own = inspect.signature(entry.cls).parameters
    return tuple(name for name in LOOP_PARAMETERS if name not in own)


def split_by_owner(entry: OptimizerEntry, params: Mapping[str, Value]) -> tuple[dict[str, Value], dict[str, Value]]:
    """The optimizer's hyperparameters, and the training loop's.

    Args:
        entry: the optimizer.
        params: name → value of one configuration.
    """
    of_loop = loop_parameters(entry)
    own = {name: value for name, value in params.items() if name not in of_loop}
    return own, {name: value for name, value in params.items() if name in of_loop}
