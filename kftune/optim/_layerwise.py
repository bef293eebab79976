"""What the layer-wise second-order optimizers share: finding layers, gathering statistics, state, the fallback."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from kftune.errors import DivergenceError
from kftune.optim._base import Closure, Likelihood, ModelOptimizer, all_finite, check_choice
from kftune.optim._capture import Capture
from kftune.optim._layers import find_layers
from kftune.optim._likelihoods import LIKELIHOODS, Fisher, output_vectors
from kftune.optim._statistics import Statistics


class LayerwiseOptimizer(ModelOptimizer):
    """An optimizer that preconditions layer by layer.

    A subclass says when statistics are due (:meth:`_statistics_due`), implements ``_update``, keeps what it wants to
    be saved as tensors in ``self._layer_state[layer name]`` and counts its updates in ``self._n_updates``.

    Args:
        model: the network.
        defaults: hyperparameters of the parameter group.
        likelihood: the model's predictive distribution.
        fisher: whose output gradients make G; None gathers no G.
        seed: of the generator from which labels and other chance come.
        treatment: what :meth:`coverage` calls the layer-wise rule.
        fallback: what it calls the rule for everything else.
    """

    def __init__(
        self,
        model: nn.Module,
        defaults: dict[str, Any],
        *,
        likelihood: Likelihood,
        fisher: Fisher | None,
        seed: int,
        treatment: str,
        fallback: str,
    ) -> None:
        check_choice("likelihood", likelihood, LIKELIHOODS)
        super().__init__(model, defaults)
        found = find_layers(model)
        self._layers = {name: layer for name, (_, layer) in found.items()}
        self._capture = Capture({name: module for name, (module, _) in found.items()})
        self._layer_state: dict[str, dict[str, Tensor]] = {name: {} for name in found}
        self._statistics = Statistics(self._layers.values())
        self._likelihood = likelihood
        self._fisher = fisher
        self._generator = torch.Generator(device=next(model.parameters()).device).manual_seed(seed)
        self._n_updates = 0
        self._n_statistics = 0
        self._treatment, self._fallback = treatment, fallback

    @abstractmethod
    def _statistics_due(self) -> bool:
        """Whether this update gathers statistics."""

    def _begin(self) -> None:
        super()._begin()
        self._statistics = Statistics(self._layers.values())

    def _forward_backward(self, closure: Closure) -> tuple[Tensor, int]:
        if not self._statistics_due():
            return super()._forward_backward(closure)
        edges: list[tuple[str, GradientEdge]] = []

        def on_use(name: str, a: Tensor, s: Tensor) -> None:
            self._add_input(name, a, s)
            if self._fisher == "empirical":
                hook = partial(self._add_gradient, self._statistics, name)
                s.register_hook(hook)  # type: ignore[no-untyped-call]  # torch does not annotate it
            elif self._fisher is not None:
                edges.append((name, get_gradient_edge(s)))

        with self._capture.recording(on_use):
            loss, output = closure()
        self._statistics.n_examples += len(output)
        if edges and self._fisher is not None:
            with self.phases.phase("statistics"):
                self._add_output_gradients(self._fisher, output, edges)
        self._backward(loss, len(output))
        if self._fisher == "empirical":
            # What was differentiated is 1/unit times the sum over examples of the unreduced loss.
            self._statistics.gradient_scale = self._unit
        return loss, len(output)

    def _add_input(self, name: str, a: Tensor, s: Tensor) -> None:
        with self.phases.phase("statistics"):
            self._statistics.add_input(name, a)

    def _add_gradient(self, statistics: Statistics, name: str, g: Tensor) -> None:
        with self.phases.phase("statistics"):
            statistics.add_gradient(name, g)

    def _add_output_gradients(self, fisher: Fisher, output: Tensor, edges: Sequence[tuple[str, GradientEdge]]) -> None:
        """Back-propagate the Fisher's output vectors to the layers only: no weight's gradient is computed."""
        for v in output_vectors(output, self._likelihood, fisher, self._generator):
            found = torch.autograd.grad(
                output, [edge for _, edge in edges], grad_outputs=v, retain_graph=True, allow_unused=True
            )
            for (name, _), g in zip(edges, found, strict=True):
                if g is not None:
                    self._statistics.add_gradient(name, g)

    def _check_gathered(self, covariances: dict[str, Tensor]) -> None:
        if not covariances and self._layers:
            raise RuntimeError(
                "a statistics update saw no layer: the closure must run the model itself, in training mode "
                "(model.train()) and with gradients enabled"
            )

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
        return [name for name, layer in self._layers.items() if all(p.grad is not None for p in layer.parameters)]

    def _check_directions(self, directions: dict[nn.Parameter, Tensor]) -> None:
        if directions and not all_finite(list(directions.values())):
            raise DivergenceError("the preconditioned gradient is not finite; the parameters are unchanged")

    def coverage(self) -> dict[str, str]:
        """Parameter name → the layer-wise rule, the first-order fallback, or ``"frozen"``."""
        own = {p: self._treatment for layer in self._layers.values() for p in layer.parameters}
        return self._coverage(self._fallback, own)

    def _extra_state(self) -> dict[str, Any]:
        return {
            "n_updates": self._n_updates,
            "n_statistics": self._n_statistics,
            "generator": self._generator.get_state(),
            "layers": {name: dict(state) for name, state in self._layer_state.items()},
        }

    def _load_extra_state(self, extra: dict[str, Any]) -> None:
        if set(extra["layers"]) != set(self._layers):
            raise ValueError(
                f"the state_dict has layers {sorted(extra['layers'])}, this optimizer has {sorted(self._layers)}"
            )
        self._n_updates, self._n_statistics = extra["n_updates"], extra["n_statistics"]
        self._generator.set_state(extra["generator"].cpu())
        self._layer_state = {
            name: {key: value.to(self._layers[name].weight.device) for key, value in state.items()}
            for name, state in extra["layers"].items()
        }
        self._statistics = Statistics(self._layers.values())
