"""What the registry knows of an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from kftune.optim.costs.sizes import Floor
from kftune.optim.curvature.likelihoods import Likelihood
from kftune.optim.interface import ModelOptimizer
from kftune.space import Space, Value


@dataclass(frozen=True, kw_only=True)
class OptimizerEntry:
    """One optimizer of the registry: all that the CLI, the search and the shared tests know of it.

    Attributes:
        name: its name in a study file.
        cls: the class. Called as ``cls(model, likelihood=..., seed=..., **hyperparameters)``.
        summary: one line.
        paper: source, as one would cite it in a line.
        space: default search space, over hyperparameters of ``cls`` and of the training loop
            (``batch_size``, ``effective_batch_size``).
        second_order: whether it uses curvature.
        example: hyperparameters that work on a small, well-scaled problem (shown by ``kftune describe``).
        invalid: (hyperparameters, part of the message) pairs that ``cls`` must refuse with ``ValueError``.
        deterministic: hyperparameters under which an update depends on the examples alone, not on how they are split
            into micro-batches (drawn labels do).
        chains_only: whether it takes nothing but chains of linear layers.
        floor: see :data:`Floor`; None for a method without matrix products of its own.
    """

    name: str
    cls: Callable[..., ModelOptimizer]
    summary: str
    paper: str
    space: Space
    second_order: bool
    example: Mapping[str, Value] = field(default_factory=dict)
    invalid: tuple[tuple[Mapping[str, Any], str], ...] = ()
    deterministic: Mapping[str, Value] = field(default_factory=dict)
    chains_only: bool = False
    floor: Floor | None = None

    def build(
        self, model: nn.Module, *, likelihood: Likelihood, seed: int = 0, params: Mapping[str, Any]
    ) -> ModelOptimizer:
        """An optimizer over ``model`` with these hyperparameters.

        Raises:
            ValueError: an invalid value; the message names the argument, the value and what is allowed.
        """
        return self.cls(model, likelihood=likelihood, seed=seed, **params)
