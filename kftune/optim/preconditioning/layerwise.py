"""What the layer-wise second-order optimizers share: finding layers, gathering statistics, state, the fallback."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from kftune.errors import DivergenceError
from kftune.optim.checks import check_choice
from kftune.optim.curvature.capture import Capture
from kftune.optim.curvature.graph import parameters_reached
from kftune.optim.curvature.layers import Layer, find_layers, split
from kftune.optim.curvature.likelihoods import LIKELIHOODS, Fisher, Likelihood, output_vectors
from kftune.optim.curvature.random import Random
from kftune.optim.curvature.rows import LazyRows, Passed, Rows, make_rows
from kftune.optim.curvature.statistics import WEIGHT_SHARINGS, Statistics, WeightSharing
from kftune.optim.curvature.thin import gradient
from kftune.optim.distributed import mean_over_processes, process_group_of, rank_of
from kftune.optim.interface import Closure, ModelOptimizer
from kftune.optim.linalg.finite import all_finite


@dataclass(eq=False)
class Use:
    """One use of a module in a forward pass.

    Attributes:
        module: its name.
        a: its input, detached.
        origin: what made the input, in the graph; None if nothing that is differentiated did.
        edge: of its output, in the graph.
        positions: see :meth:`kftune.optim.curvature.layers.Layer.positions`.
        n_rows: examples times positions.
    """

    module: str
    a: Tensor
    origin: Node | None
    edge: GradientEdge
    positions: tuple[int, ...]
    n_rows: int
    gradients: list[Tensor] = field(default_factory=list)
    """By the module's output, of the loss' own backward pass (empirical Fisher)."""


class LayerwiseOptimizer(ModelOptimizer):
    """An optimizer that preconditions layer by layer.

    A subclass says what is due in this update (:meth:`_statistics_due`), implements ``_update``, keeps what it wants to
    be saved as tensors in ``self._layer_state[layer name]`` and counts its updates in ``self._n_updates``.

    There are three ways to see what passes the layers: covariances A and G are summed in ``self._statistics``; a
    subclass with ``needs_rows`` also gets ā and g themselves, example by example (:meth:`_add_rows`); and where
    :meth:`_prefers_factors` says so, the loss' own gradient stays in its two thin factors (:attr:`_gradient_rows`).

    Args:
        model: the network.
        defaults: hyperparameters of the parameter group.
        likelihood: the model's predictive distribution.
        fisher: whose output gradients make G; None gathers no G.
        weight_sharing: see :data:`kftune.optim.curvature.statistics.WeightSharing`.
        seed: of the generator from which labels and other chance come.
        treatment: what :meth:`coverage` calls the layer-wise rule.
        fallback: what it calls the rule for everything else.
    """

    needs_rows: ClassVar[bool] = False
    """Whether statistics updates report to :meth:`_add_rows`."""

    distributed: ClassVar[bool] = False
    """Whether every statistic goes through :meth:`_mean_over_processes`, so that DistributedDataParallel is exact."""

    def __init__(
        self,
        model: nn.Module,
        defaults: dict[str, Any],
        *,
        likelihood: Likelihood,
        fisher: Fisher | None,
        weight_sharing: WeightSharing = "expand",
        seed: int,
        treatment: str,
        fallback: str,
    ) -> None:
        check_choice("likelihood", likelihood, LIKELIHOODS)
        check_choice("weight_sharing", weight_sharing, WEIGHT_SHARINGS)
        super().__init__(model, defaults)
        if any(isinstance(module, nn.DataParallel) and len(module.device_ids) > 1 for module in model.modules()):
            what = f"{type(self).__name__} cannot see into the copies that nn.DataParallel makes"
            raise ValueError(f"{what}: use DistributedDataParallel")
        self._process_group = process_group_of(model)
        if self._process_group is not None and not self.distributed:
            what = f"{type(self).__name__} does not average its curvature over processes"
            raise ValueError(f"{what}: give it one process")
        found = find_layers(model)
        self._of_module = {name: layers for name, (_, layers) in found.items()}
        self._layers = {layer.name: layer for layers in self._of_module.values() for layer in layers}
        self._capture = Capture({name: module for name, (module, _) in found.items()})
        self._layer_state: dict[str, dict[str, Tensor]] = {name: {} for name in self._layers}
        self._weight_sharing = weight_sharing
        self._statistics = self._new_statistics()
        self._gradient_rows: dict[str, Rows] = {}
        self._seen: set[str] = set()
        self._warned = False
        self._likelihood = likelihood
        self._fisher = fisher
        first = next(model.parameters())
        self._random = Random(seed, process=rank_of(self._process_group), device=first.device)
        self._n_updates = 0
        self._n_statistics = 0
        self._treatment, self._fallback = treatment, fallback

    # What a subclass decides.

    @abstractmethod
    def _statistics_due(self) -> bool:
        """Whether this update gathers statistics."""

    def _covariances_due(self) -> bool:
        """Whether an update that gathers statistics needs A and G among them."""
        return True

    def _add_rows(self, rows: Mapping[str, Rows]) -> None:
        """Take ā and g of one micro-batch, layer by layer; called once for each output vector of the Fisher.

        A layer's rows are made each time they are looked up: patches of all convolutions at once would be large.
        """

    def _take_rows(self, uses: Sequence[Use], gradients: Sequence[Tensor | None], n_examples: int) -> None:
        """Take what passed the layers in one micro-batch as it is, before :meth:`_add_rows` makes rows of it.

        Args:
            uses: of all modules, in the order of their calls.
            gradients: of the unreduced loss by the output of each use; None where there is none.
            n_examples: N of the micro-batch.
        """
        self._add_rows(self._rows(uses, gradients, n_examples))

    def _prefers_factors(self, layer: Layer, n_rows: int) -> bool:
        """Whether ``n_rows`` rows of (g, ā) serve this update better than the gradient V = (1/N) Σ g āᵀ itself.

        Then autograd does not compute V, the parameters' ``.grad`` stays None, and ``self._gradient_rows[layer.name]``
        holds the rows. Only asked where nobody can look at ``.grad`` before the update, in ``step(closure)``.
        """
        return False

    # Gathering.

    def _new_statistics(self) -> Statistics:
        return Statistics(self._layers.values(), self._weight_sharing)

    def _begin(self) -> None:
        super()._begin()
        self._statistics = self._new_statistics()
        self._gradient_rows = {}
        self._seen = set()

    def _forward_backward(self, closure: Closure) -> tuple[Tensor, int]:
        statistics = self._statistics_due()
        if not statistics and not self._single:
            return super()._forward_backward(closure)
        uses: list[Use] = []

        def on_use(module: str, a: Tensor, s: Tensor) -> None:
            layer = self._of_module[module][0]
            use = Use(module, a.detach(), a.grad_fn, get_gradient_edge(s), layer.positions(s), layer.n_rows(s))
            uses.append(use)
            if statistics:
                self._see(use, s)

        with self._capture.recording(on_use):
            loss, output = closure()
        n_examples = len(output)
        if statistics:
            if self._weight_sharing == "reduce":
                self._check_examples_first(uses, n_examples)
            self._statistics.n_examples += n_examples
            if self._fisher not in (None, "empirical"):
                self._back_propagate_fisher(output, uses)
        self._back_propagate_loss(loss, n_examples, uses)
        if statistics and self._fisher == "empirical":
            # What was differentiated is 1/unit times the sum over examples of the unreduced loss.
            self._statistics.gradient_scale = self._unit
            if self.needs_rows:
                with self.phases.phase("statistics"):
                    gradients = [use.gradients[0] * self._unit if use.gradients else None for use in uses]
                    self._take_rows(uses, gradients, n_examples)
        return loss, n_examples

    def _see(self, use: Use, s: Tensor) -> None:
        """Take what the forward pass shows of one use at a statistics update."""
        layers = self._of_module[use.module]
        self._seen.update(layer.name for layer in layers)
        if self._covariances_due():
            with self.phases.phase("statistics"):
                for layer in layers:
                    self._statistics.add_input(layer.name, use.a)
        if self._fisher == "empirical":
            statistics = self._statistics
            # The graph keeps the hook, so that a hook that keeps ``use``, and its edge, would keep the graph.
            module, gradients = use.module, use.gradients

            def take(g: Tensor) -> None:
                with self.phases.phase("statistics"):
                    self._take_gradient(statistics, module, g)
                if self.needs_rows:
                    gradients.append(g)

            s.register_hook(take)  # type: ignore[no-untyped-call]  # torch does not annotate it

    def _take_gradient(self, statistics: Statistics, module: str, g: Tensor) -> None:
        if self._covariances_due():
            for layer in self._of_module[module]:
                statistics.add_gradient(layer.name, g)

    def _back_propagate_fisher(self, output: Tensor, uses: Sequence[Use]) -> None:
        """Back-propagate the Fisher's output vectors to the layers only: no weight's gradient is computed."""
        if not uses or self._fisher is None:
            return
        edges = [use.edge for use in uses]
        with self.phases.phase("statistics"):
            generator = self._random.on(output.device)
            for v in output_vectors(output, self._likelihood, self._fisher, generator):
                found = torch.autograd.grad(output, edges, grad_outputs=v, retain_graph=True, allow_unused=True)
                for use, g in zip(uses, found, strict=True):
                    if g is not None:
                        self._take_gradient(self._statistics, use.module, g)
                if self.needs_rows:
                    self._take_rows(uses, found, len(output))

    def _back_propagate_loss(self, loss: Tensor, n_examples: int, uses: Sequence[Use]) -> None:
        """``.grad`` of the loss; of layers that prefer it, :attr:`_gradient_rows` instead."""
        # DistributedDataParallel reduces what goes into ``.grad``.
        can_choose = self._single and self._process_group is None
        chosen = self._choose_factors(loss, uses, n_examples) if can_choose else set()
        if not chosen:
            self._backward(loss, n_examples)
            return
        thin = [use for use in uses if use.module in chosen]
        left_out = {p for module in chosen for layer in self._of_module[module] for p in layer.parameters}
        parameters = [
            p for group in self.param_groups for p in group["params"] if p.requires_grad and p not in left_out
        ]
        self._unit = n_examples
        found = torch.autograd.grad(loss, [*(use.edge for use in thin), *parameters], allow_unused=True)
        for p, g in zip(parameters, found[len(thin) :], strict=True):
            p.grad = g
        gradients = [None if g is None else g * n_examples for g in found[: len(thin)]]
        self._gradient_rows = dict(self._rows(thin, gradients, n_examples))

    def _choose_factors(self, loss: Tensor, uses: Sequence[Use], n_examples: int) -> set[str]:
        """Modules whose gradient stays in factors: those whose parameters act on the loss through their outputs alone.

        (A penalty on a weight, or a second use of it outside its module, adds to its gradient what no output shows.)
        """
        n_rows: dict[str, int] = {}
        for use in uses:
            n_rows[use.module] = n_rows.get(use.module, 0) + use.n_rows
        chosen = {
            module
            for module, n in n_rows.items()
            if all(
                self._prefers_factors(layer, n) and all(p.requires_grad for p in layer.parameters)
                for layer in self._of_module[module]
            )
        }
        chosen -= {use.module for use in uses if len(use.a) % n_examples}  # rows that are not of examples
        if not chosen or loss.grad_fn is None:
            return set()
        thin = [use for use in uses if use.module in chosen]
        roots = [loss.grad_fn, *(use.origin for use in thin if use.origin is not None)]
        reached = parameters_reached(roots, without=[use.edge.node for use in thin])
        return {m for m in chosen if not any(p in reached for layer in self._of_module[m] for p in layer.parameters)}

    def _check_examples_first(self, uses: Sequence[Use], n_examples: int) -> None:
        """Complain about sequences before examples where positions are reduced, before anybody knows N."""
        for use in uses:
            layer = self._of_module[use.module][0]
            if layer.examples_first(use.a, n_examples) is not use.a:
                raise RuntimeError(
                    f"weight_sharing='reduce' takes the input of layer {use.module!r} for {len(use.a)} examples, and "
                    f"the closure returned {n_examples}: put examples first (batch_first=True)"
                )

    def _rows(self, uses: Sequence[Use], gradients: Sequence[Tensor | None], n_examples: int) -> LazyRows:
        """Layer → rows of all its uses; a use without gradient does not count."""
        passed: dict[str, list[Passed]] = {}
        for use, g in zip(uses, gradients, strict=True):
            if g is not None:
                for layer in self._of_module[use.module]:
                    passed.setdefault(layer.name, []).append(Passed(use.a, g.detach(), use.positions))
        return LazyRows(
            {name: partial(make_rows, self._layers[name], parts, n_examples) for name, parts in passed.items()}
        )

    def _form_gradients(self, names: Iterable[str]) -> None:
        """Put the gradient of layers that kept its factors into ``.grad`` after all."""
        for name in names:
            layer = self._layers[name]
            for p, tensor in split([layer], {name: gradient(self._gradient_rows.pop(name))}).items():
                p.grad = tensor

    def _check_gathered(self) -> None:
        """Complain if a statistics update saw nothing; warn, once, if it missed a layer that has a gradient."""
        if not self._seen and self._layers:
            raise RuntimeError(
                "a statistics update saw no layer: the closure must run the model itself, in training mode "
                "(model.train()) and with gradients enabled"
            )
        missed = [name for name in self._layers_with_gradient() if name not in self._seen]
        if missed and not self._warned:
            self._warned = True
            warnings.warn(
                f"layers {', '.join(missed)} have a gradient but were not seen in the forward pass, and are updated "
                f"by {self._fallback}: is their module called, in training mode, and not inside reentrant "
                "checkpointing (use_reentrant=False works)?",
                stacklevel=2,
            )

    # Averages, groups, checks.

    def _mean_over_processes(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean over all processes of DistributedDataParallel, in place; each has as many examples as any other.

        (So has the gradient that DistributedDataParallel takes the mean of.)
        """
        if self._process_group is not None and tensors:
            mean_over_processes(list(tensors.values()), self._process_group)
        return tensors

    def _average(self, key: str, news: dict[str, Tensor], decay: float) -> None:
        """state[key] ← decay·state[key] + (1 − decay)·new, layer by layer; a layer's first value is taken as it is."""
        averaged = [(self._layer_state[name][key], new) for name, new in news.items() if key in self._layer_state[name]]
        if averaged:
            torch._foreach_lerp_([old for old, _ in averaged], [new for _, new in averaged], 1 - decay)
        for name, new in news.items():
            self._layer_state[name].setdefault(key, new)

    def _groups(self) -> dict[nn.Parameter, dict[str, Any]]:
        """Parameter → its group."""
        return {p: group for group in self.param_groups for p in group["params"]}

    def _dampings(self) -> dict[str, float]:
        """Layer → λ, that of the weight's group."""
        groups = self._groups()
        return {name: groups[layer.weight]["damping"] for name, layer in self._layers.items()}

    def _layers_with_gradient(self) -> list[str]:
        """Layers whose gradient is in ``.grad`` or in :attr:`_gradient_rows`."""
        return [
            name
            for name, layer in self._layers.items()
            if name in self._gradient_rows or all(p.grad is not None for p in layer.parameters)
        ]

    def _split(self, matrices: Mapping[str, Tensor]) -> dict[nn.Parameter, Tensor]:
        """Layer → matrix as parameter → tensor."""
        return split(self._layers.values(), matrices)

    def _gradient_tensors(self) -> list[Tensor]:
        return super()._gradient_tensors() + [rows.gradients for rows in self._gradient_rows.values()]

    def _check_directions(self, directions: Iterable[Tensor]) -> None:
        found = list(directions)
        if found and not all_finite(found):
            raise DivergenceError("the preconditioned gradient is not finite; the parameters are unchanged")

    def coverage(self) -> dict[str, str]:
        """Parameter name → the layer-wise rule, the first-order fallback, or ``"frozen"``."""
        trained = [layer for layer in self._layers.values() if all(p.requires_grad for p in layer.parameters)]
        return self._coverage(self._fallback, {p: self._treatment for layer in trained for p in layer.parameters})

    # State.

    def _extra_state(self) -> dict[str, Any]:
        return {
            "n_updates": self._n_updates,
            "n_statistics": self._n_statistics,
            "random": self._random.state(),
            "layers": {name: dict(state) for name, state in self._layer_state.items()},
        }

    def _check_extra_state(self, extra: dict[str, Any]) -> None:
        if set(extra["layers"]) != set(self._layers):
            raise ValueError(
                f"the state_dict has layers {sorted(extra['layers'])}, this optimizer has {sorted(self._layers)}"
            )

    def _load_extra_state(self, extra: dict[str, Any]) -> None:
        self._n_updates, self._n_statistics = extra["n_updates"], extra["n_statistics"]
        self._random.load(extra["random"])
        self._layer_state = {
            name: {key: value.to(self._layers[name].weight.device) for key, value in state.items()}
            for name, state in extra["layers"].items()
        }
        self._begin()
