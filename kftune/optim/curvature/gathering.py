"""What passes the layers of a model in a micro-batch: forward, and back from the Fisher's output vectors and the loss.

There are three ways to see it: A and G are summed in :class:`~kftune.optim.curvature.statistics.Statistics`; whoever
wants them gets ā and g themselves, example by example; and the loss' own gradient can stay in its two thin factors
(:mod:`kftune.optim.curvature.thin`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn.modules.module import _global_backward_hooks

from kftune.optim.curvature.capture import Capture
from kftune.optim.curvature.graph import parameters_reached
from kftune.optim.curvature.layers import Layer, find_layers
from kftune.optim.curvature.layout import ClassDimension
from kftune.optim.curvature.likelihoods import Fisher, GradientScale, Likelihood, label_scale, output_vectors
from kftune.optim.curvature.random import Random
from kftune.optim.curvature.rows import LazyRows, Passed, Rows, make_rows
from kftune.optim.curvature.statistics import Statistics
from kftune.optim.interface import Closure, PhaseTimer


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


TakeRows: TypeAlias = Callable[[Sequence[Use], Sequence[Tensor | None], int], None]
"""Takes the uses of all modules in the order of their calls; the gradients of the unreduced loss by the output of each,
None where there is none; and N of the micro-batch. Called once for each output vector of the Fisher."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What an update that gathers statistics wants of its micro-batches.

    Attributes:
        statistics: the update's sums.
        covariances: whether A and G are summed in them.
        take_rows: who takes what passed the layers as it is; None for nobody.
    """

    statistics: Statistics
    covariances: bool
    take_rows: TakeRows | None


class Passage(NamedTuple):
    """One micro-batch after its forward pass.

    Attributes:
        loss: the mean over its examples, with its graph.
        n_examples: N.
        uses: of all modules, in the order of their calls.
        label_scale: what the gradient of one example's loss is multiplied with in the empirical Fisher.
    """

    loss: Tensor
    n_examples: int
    uses: list[Use]
    label_scale: float


def _origin(a: Tensor) -> Node | None:
    """What made a tensor, or what takes its gradient if it is a leaf; None if it has none."""
    return get_gradient_edge(a).node if a.requires_grad else None


class Gatherer:
    """Watches the layers of a model, and back-propagates to them. What belongs to an update is in :class:`Wanted`.

    Args:
        model: the network.
        likelihood: its predictive distribution.
        fisher: whose output gradients make G; None gathers no G.
        examples_first: whether inputs must have their examples in the first dimension, as ``reduce`` needs.
        seed: of the generator of drawn labels.
        process: rank of this process.
        scale: of gradients towards labels.

    Attributes:
        of_module: module → its layers.
        layers: layer name → layer.
        random: where labels are drawn from.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        likelihood: Likelihood,
        fisher: Fisher | None,
        examples_first: bool,
        seed: int,
        process: int,
        scale: GradientScale,
    ) -> None:
        found = find_layers(model)
        self._modules = {name: module for name, (module, _) in found.items()}
        self.of_module = {name: layers for name, (_, layers) in found.items()}
        self.layers = {layer.name: layer for layers in self.of_module.values() for layer in layers}
        self.random = Random(seed, process=process, device=next(model.parameters()).device)
        self._capture = Capture(self._modules)
        self._likelihood, self._fisher, self._examples_first = likelihood, fisher, examples_first
        self._scale: GradientScale = scale
        self._classes = ClassDimension() if likelihood == "categorical" and fisher is not None else None

    # Forward.

    def forward(self, closure: Closure, wanted: Wanted | None, phases: PhaseTimer) -> Passage:
        """Run the closure; sum inputs, and back-propagate the Fisher's output vectors.

        Args:
            closure: of the micro-batch.
            wanted: None in an update that gathers no statistics.
            phases: where the time is reported to.

        Raises:
            RuntimeError: examples do not come first where they must.
        """
        uses: list[Use] = []

        def on_use(module: str, a: Tensor, s: Tensor) -> None:
            layer = self._layer_with_examples(module, a)
            if len(a) == 0:
                return
            use = Use(module, a.detach(), _origin(a), get_gradient_edge(s), layer.positions(s), layer.n_rows(s))
            uses.append(use)
            if wanted is not None:
                self._see(use, s, wanted, phases)

        with self._capture.recording(on_use):
            loss, output = closure()
        n_examples = len(output)
        if wanted is not None:
            wanted.statistics.begin_batch(n_examples)
            if self._examples_first:
                self._check_examples_first(uses, n_examples)
                if wanted.covariances:
                    for use in uses:
                        self._add_input(use.module, use.a, wanted.statistics, phases)
            if self._fisher not in (None, "empirical"):
                self._back_propagate_fisher(output, uses, wanted, phases)
            if self._classes is not None:  # after the passes above, whose gradients are not the loss'
                self._classes.watch(output)
        scale = label_scale(output, self._likelihood, self._scale) if self._fisher == "empirical" else 1.0
        return Passage(loss, n_examples, uses, scale)

    def forward_only(self, closure: Closure, statistics: Statistics, phases: PhaseTimer) -> tuple[Tensor, int]:
        """Run the closure and sum inputs, for A alone; returns the mean loss and the number of examples."""
        inputs: list[tuple[str, Tensor]] = []

        def on_use(module: str, a: Tensor, s: Tensor) -> None:
            self._layer_with_examples(module, a)
            if len(a) == 0:
                return
            if self._examples_first:  # which rows belong to an example is known afterwards
                inputs.append((module, a.detach()))
            else:
                self._add_input(module, a, statistics, phases)

        with self._capture.recording(on_use):
            loss, output = closure()
        statistics.begin_batch(len(output))
        for module, a in inputs:
            self._add_input(module, a, statistics, phases)
        return loss, len(output)

    def _layer_with_examples(self, module: str, a: Tensor) -> Layer:
        """The module's (first) layer.

        Raises:
            ValueError: its input has no dimension of examples.
        """
        layer = self.of_module[module][0]
        if a.ndim < layer.least_ndim:
            raise ValueError(
                f"layer {module!r} was given an input of the shape {tuple(a.shape)}, which has no dimension of "
                "examples: give one example with a dimension of its own (x[None])"
            )
        return layer

    def _add_input(self, module: str, a: Tensor, statistics: Statistics, phases: PhaseTimer) -> None:
        with phases.phase("statistics"):
            for layer in self.of_module[module]:
                statistics.seen.add(layer.name)
                statistics.add_input(layer.name, a)

    def _see(self, use: Use, s: Tensor, wanted: Wanted, phases: PhaseTimer) -> None:
        """Take what the forward pass shows of one use at a statistics update."""
        if wanted.covariances and not self._examples_first:  # else they wait for the number of examples
            self._add_input(use.module, use.a, wanted.statistics, phases)
        else:
            wanted.statistics.seen.update(layer.name for layer in self.of_module[use.module])
        if self._fisher == "empirical":
            # The graph keeps the hook, so that a hook that keeps ``use``, and its edge, would keep the graph.
            module, gradients = use.module, use.gradients

            def take(g: Tensor) -> None:
                with phases.phase("statistics"):
                    self._take_gradient(module, g, wanted)
                if wanted.take_rows is not None:
                    gradients.append(g)

            s.register_hook(take)  # type: ignore[no-untyped-call]  # torch does not annotate it

    def _take_gradient(self, module: str, g: Tensor, wanted: Wanted) -> None:
        if wanted.covariances:
            for layer in self.of_module[module]:
                wanted.statistics.add_gradient(layer.name, g)

    def _check_examples_first(self, uses: Sequence[Use], n_examples: int) -> None:
        """Complain about sequences before examples where positions are reduced, before anybody knows N."""
        for use in uses:
            layer = self.of_module[use.module][0]
            if layer.examples_first(use.a, n_examples) is not use.a:
                raise RuntimeError(
                    f"weight_sharing='reduce' takes the input of layer {use.module!r} for {len(use.a)} examples, and "
                    f"the closure returned {n_examples}: put examples first (batch_first=True)"
                )

    # Back from the Fisher's output vectors.

    def _back_propagate_fisher(self, output: Tensor, uses: Sequence[Use], wanted: Wanted, phases: PhaseTimer) -> None:
        """Back-propagate the Fisher's output vectors to the layers only: no weight's gradient is computed."""
        if not uses or self._fisher is None:
            return
        if not output.requires_grad:
            raise ValueError(
                "the closure returned an output without a graph: curvature needs the model's own, not .detach()"
            )
        edges = [use.edge for use in uses]
        with phases.phase("statistics"):
            generator = self.random.on(output.device)
            for v in output_vectors(output, self._likelihood, self._fisher, generator, self._scale):
                found = torch.autograd.grad(output, edges, grad_outputs=v, retain_graph=True, allow_unused=True)
                for use, g in zip(uses, found, strict=True):
                    if g is not None:
                        self._take_gradient(use.module, g, wanted)
                if wanted.take_rows is not None:
                    wanted.take_rows(uses, found, len(output))

    # Back from the loss.

    def take_loss_gradients(self, passage: Passage, unit: int, wanted: Wanted, phases: PhaseTimer) -> None:
        """After the loss' backward pass: what the empirical Fisher is made of; nothing for another one.

        Where the pass shows that the output is not what the likelihood takes it for, it is refused.

        Args:
            passage: of the micro-batch.
            unit: what was differentiated is 1/unit times the sum over examples of the unreduced loss.
            wanted: as in :meth:`forward`.
            phases: where the time is reported to.

        Raises:
            RuntimeError: classes are not in the output's last dimension.
        """
        if self._classes is not None:
            self._classes.check()
        if self._fisher != "empirical":
            return
        if wanted.take_rows is not None:
            with phases.phase("statistics"):
                scale = unit * passage.label_scale
                gradients = [use.gradients[0] * scale if use.gradients else None for use in passage.uses]
                wanted.take_rows(passage.uses, gradients, passage.n_examples)

    def can_stay_thin(
        self, passage: Passage, is_preferred: Callable[[Layer, int], bool], trained: Collection[nn.Parameter]
    ) -> set[str]:
        """Modules whose gradient may stay in factors: their parameters act on the loss through their outputs alone.

        (A penalty on a weight, or a second use of it outside its module, adds to its gradient what no output shows.)
        Where somebody has a hook on a gradient that would not be computed, or waits for the gradient of another leaf
        of the graph, it is computed.

        Args:
            passage: of the micro-batch.
            is_preferred: (layer, number of rows) → whether factors are preferred.
            trained: all trained parameters.
        """
        loss, n_examples, uses, _ = passage
        if _global_backward_hooks or any(p._post_accumulate_grad_hooks for p in trained):
            return set()
        n_rows: dict[str, int] = {}
        for use in uses:
            n_rows[use.module] = n_rows.get(use.module, 0) + use.n_rows
        chosen = {
            module
            for module, n in n_rows.items()
            if all(
                is_preferred(layer, n) and all(p.requires_grad for p in layer.parameters)
                for layer in self.of_module[module]
            )
        }
        chosen -= {use.module for use in uses if len(use.a) % n_examples}  # rows that are not of examples
        chosen -= {module for module in chosen if self._is_hooked(module)}
        if not chosen or loss.grad_fn is None:
            return set()
        thin = [use for use in uses if use.module in chosen]
        roots = [loss.grad_fn, *(use.origin for use in thin if use.origin is not None)]
        reached = parameters_reached(roots, without=[use.edge.node for use in thin])
        if not reached.issubset(trained):
            return set()
        return {m for m in chosen if not any(p in reached for layer in self.of_module[m] for p in layer.parameters)}

    def _is_hooked(self, module: str) -> bool:
        """Whether somebody has a hook on the backward pass of a module, or on a gradient of its parameters."""
        hooked: list[Any] = [self._modules[module]._backward_hooks]
        hooked += [p._backward_hooks for layer in self.of_module[module] for p in layer.parameters]
        return any(hooked)

    def back_propagate_thin(
        self, passage: Passage, modules: Collection[str], trained: Iterable[nn.Parameter]
    ) -> dict[str, Rows]:
        """The rows of (g, ā) of some modules' layers in the place of their gradient; all others' goes to ``.grad``.

        Args:
            passage: of the micro-batch.
            modules: of :meth:`can_stay_thin`.
            trained: all trained parameters.
        """
        loss, n_examples, uses, _ = passage
        thin = [use for use in uses if use.module in modules]
        left_out = {p for module in modules for layer in self.of_module[module] for p in layer.parameters}
        parameters: list[Any] = [p for p in trained if p not in left_out]
        found = torch.autograd.grad(loss, [*(use.edge for use in thin), *parameters], allow_unused=True)
        for p, g in zip(parameters, found[len(thin) :], strict=True):
            p.grad = g
        gradients = [None if g is None else g * n_examples for g in found[: len(thin)]]
        return dict(self.rows(thin, gradients, n_examples))

    def rows(self, uses: Sequence[Use], gradients: Sequence[Tensor | None], n_examples: int) -> LazyRows:
        """Layer → rows of all its uses; a use without gradient does not count.

        A layer's rows are made each time they are looked up: patches of all convolutions at once would be large.
        """
        passed: dict[str, list[Passed]] = {}
        for use, g in zip(uses, gradients, strict=True):
            if g is not None:
                for layer in self.of_module[use.module]:
                    passed.setdefault(layer.name, []).append(Passed(use.a, g.detach(), use.positions))
        return LazyRows(
            {name: partial(make_rows, self.layers[name], parts, n_examples) for name, parts in passed.items()}
        )
