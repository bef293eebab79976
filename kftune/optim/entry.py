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

    The shared tests run every entry with ``example`` and its flags, and ask of it what stands here.

    Attributes:
        name: its name in a study file.
        cls: the class. Called as ``cls(model, likelihood=..., seed=..., **hyperparameters)``, every argument but the
            first by keyword. Its docstring says what each means.
        summary: one line.
        paper: source, as one would cite it in a line.
        space: default search space, over hyperparameters of ``cls`` and of the training loop
            (``batch_size``, ``effective_batch_size``), of which it has one at least. All its corners are valid.
        second_order: whether it uses curvature; it then reports the phases ``statistics``, ``inversion`` and
            ``preconditioning``, and otherwise none of them.
        example: hyperparameters that work on a small, well-scaled problem (shown by ``kftune describe``). In 100
            updates on 60 examples they bring the loss of a network of two layers below 0.4 of what it was, with every
            likelihood, in float32 and float64; in 60 updates that of a small residual and a small attention
            network below 0.7 (unless ``chains_only``). With them every trained parameter changes, and a learning rate
            of 0 changes none.
        invalid: (hyperparameters, part of the message) pairs that ``cls`` must refuse with ``ValueError``.
        deterministic: hyperparameters under which an update depends on the examples alone, not on how they are split
            into micro-batches (drawn labels do).
        chains_only: whether it takes nothing but chains of linear layers; it then refuses other models with a message
            that speaks of a chain.
        distributed: whether two processes of DistributedDataParallel do what one does on the union of their batches;
            one that does not average its curvature refuses more than one.
        kl_clip: whether the example's updates are shortened by a KL clip, whose hyperparameter is ``kl_clip`` and whose
            readings are ``kl_clip_active`` and ``kl_clip_scale``.
        readings: names that :meth:`ModelOptimizer.readings` may have beside those that it describes.
        floor: see :data:`~kftune.optim.costs.sizes.Floor`; None for a method without matrix products of its own.
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
    distributed: bool = True
    kl_clip: bool = False
    readings: tuple[str, ...] = ()
    floor: Floor | None = None

    def build(
        self, model: nn.Module, *, likelihood: Likelihood, seed: int = 0, params: Mapping[str, Any]
    ) -> ModelOptimizer:
        """An optimizer over ``model`` with these hyperparameters.

        Raises:
            ValueError: an invalid value; the message names the argument, the value and what is allowed.
        """
        made = self.cls(model, likelihood=likelihood, seed=seed, **params)
        made.expect(likelihood)
        return made
