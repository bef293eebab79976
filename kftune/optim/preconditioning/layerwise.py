"""What the layer-wise second-order optimizers share: when to gather, what becomes of it, state, the fallback."""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from kftune.errors import DivergenceError
from kftune.optim.checks import check_choice
from kftune.optim.curvature.gathering import Gatherer, Passage, Use, Wanted
from kftune.optim.curvature.layers import Layer, split
from kftune.optim.curvature.likelihoods import LIKELIHOODS, Fisher, GradientScale, Likelihood
from kftune.optim.curvature.rows import Rows
from kftune.optim.curvature.statistics import WEIGHT_SHARINGS, Statistics, WeightSharing
from kftune.optim.curvature.thin import gradient
from kftune.optim.distributed import mean_over_processes, process_group_of, rank_of
from kftune.optim.interface import Closure, ModelOptimizer
from kftune.optim.linalg.finite import all_finite
from kftune.optim.states import check_layers, check_shape, tensors_in
from kftune.optim.updates.averages import Decay, lerped


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

    gradient_scale: ClassVar[GradientScale] = "fisher"
    """Of gradients towards labels; see :mod:`kftune.optim.curvature.likelihoods`."""

    layer_shapes: ClassVar[dict[str, str]] = {"input_covariance": "AA", "gradient_covariance": "GG"}
    """Tensor of ``self._layer_state[layer]`` → its dimensions, A for d_A, G for d_G and n for any number: a state is
    loaded only where they are the layer's."""

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
        super().__init__(model, defaults, likelihood=likelihood)
        if any(isinstance(module, nn.DataParallel) and len(module.device_ids) > 1 for module in model.modules()):
            what = f"{type(self).__name__} cannot see into the copies that nn.DataParallel makes"
            raise ValueError(f"{what}: use DistributedDataParallel")
        self._process_group = process_group_of(model)
        if self._process_group is not None and not self.distributed:
            what = f"{type(self).__name__} does not average its curvature over processes"
            raise ValueError(f"{what}: give it one process")
        self._gatherer = Gatherer(
            model,
            likelihood=likelihood,
            fisher=fisher,
            examples_first=weight_sharing == "reduce",
            seed=seed,
            process=rank_of(self._process_group),
            scale=self.gradient_scale,
        )
        self._layers = self._gatherer.layers
        self._layer_state: dict[str, dict[str, Tensor]] = {name: {} for name in self._layers}
        self._weight_sharing = weight_sharing
        self._statistics = self._new_statistics()
        self._covariances: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        self._suspects: dict[str, Tensor] = {}
        self._gradient_rows: dict[str, Rows] = {}
        self._warned = False
        self._fisher = fisher
        self._n_updates = 0
        self._n_statistics = 0
        self._n_averaged: dict[str, dict[str, int]] = {}  # key of an average → layer → its values so far
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

        See :data:`kftune.optim.curvature.gathering.TakeRows`.
        """
        self._add_rows(self._gatherer.rows(uses, gradients, n_examples))

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
        self._covariances, self._suspects = ({}, {}), {}
        self._gradient_rows = {}

    def _forward_backward(self, closure: Closure) -> tuple[Tensor, int]:
        wanted = self._wanted() if self._statistics_due() else None
        if wanted is None and not self._single:
            return super()._forward_backward(closure)
        passage = self._gatherer.forward(closure, wanted, self.phases)
        unit = self._n_before + passage.n_examples
        if wanted is not None and self._fisher == "empirical":
            self._statistics.set_gradient_scale(unit * passage.label_scale)
        self._back_propagate(passage)
        if wanted is not None:
            self._gatherer.take_loss_gradients(passage, unit, wanted, self.phases)
        return passage.loss, passage.n_examples

    def _wanted(self) -> Wanted:
        return Wanted(
            statistics=self._statistics,
            covariances=self._covariances_due(),
            take_rows=self._take_rows if self.needs_rows else None,
        )

    def _back_propagate(self, passage: Passage) -> None:
        """``.grad`` of the loss; of layers that prefer it, :attr:`_gradient_rows` instead."""
        # DistributedDataParallel reduces what goes into ``.grad``.
        can_choose = self._single and self._process_group is None
        trained = dict.fromkeys(p for group in self.param_groups for p in group["params"] if p.requires_grad)
        chosen = self._gatherer.can_stay_thin(passage, self._prefers_factors, trained) if can_choose else set()
        if not chosen:
            self._backward(passage.loss, passage.n_examples)
            return
        self._gradient_rows = self._gatherer.back_propagate_thin(passage, chosen, trained)

    def _form_gradients(self, names: Iterable[str]) -> None:
        """Put the gradient of layers that kept its factors into ``.grad`` after all."""
        for name in names:
            layer = self._layers[name]
            for p, tensor in split([layer], {name: gradient(self._gradient_rows.pop(name))}).items():
                p.grad = tensor

    def _check_gathered(self) -> None:
        """Complain if a statistics update saw nothing; warn, once, if it missed a layer that has a gradient."""
        if not self._statistics.seen and self._layers:
            raise RuntimeError(
                "a statistics update saw no layer: the closure must run the model itself, in training mode "
                "(model.train()) and with gradients enabled"
            )
        missed = [name for name in self._layers_with_gradient() if name not in self._statistics.seen]
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

    def _batch_covariances(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(layer → A, layer → G) of this update, which were checked. Consumes them."""
        covariances, self._covariances = self._covariances, ({}, {})
        return covariances

    def _batch_statistics(self) -> list[Tensor]:
        self._suspects = {}
        if self._statistics_due():
            with self.phases.phase("statistics"):
                self._close_statistics()
        return _one_for_each_device(self._suspects.values())

    def _check_batch(self, loss: Tensor) -> None:
        super()._check_batch(loss)
        self._suspects = {}

    def _bad_statistic(self) -> str | None:
        return next((name for name, own in self._suspects.items() if not all_finite([own])), None)

    def _close_statistics(self) -> None:
        """Finish what was gathered for this update, and give what enters averages to :meth:`_suspect`.

        Raises:
            RuntimeError: no layer was seen.
        """
        if not self._covariances_due():
            return
        inputs = self._mean_over_processes(self._statistics.input_covariances())
        gradients = self._mean_over_processes(self._statistics.gradient_covariances())
        self._check_gathered()
        self._covariances = inputs, gradients
        for side, found in (("input", inputs), ("gradient", gradients)):
            for name, covariance in found.items():
                self._suspects[f"the {side} covariance of layer {name!r}"] = covariance.diagonal()

    def _suspect(self, what: str, tensors: Mapping[str, Tensor]) -> None:
        """Have the next check look at tensors by layer.

        That is the one of the whole batch, or, for what is made afterwards, the one of the directions.
        """
        for name, tensor in tensors.items():
            self._suspects[f"the {what} of layer {name!r}"] = tensor.sum().view(1)  # not finite if an entry is not

    def _average(self, key: str, news: dict[str, Tensor], decay: Decay, n: int | None = None) -> None:
        """state[key] ← decay(k)·state[key] + (1 − decay(k))·new for the k-th value of a layer, whose first is taken.

        The old tensors stay as they are, in case the update is refused; the new ones are used up.

        Args:
            key: of the average.
            news: layer → new value.
            decay: weight on the old value; k counts a layer's own values, it may have been used late or rarely.
            n: values with these of a layer whose own were not counted, in a state of before; None for statistics.
        """
        counts = dict(self._n_averaged.get(key, {}))
        by_count: dict[int, list[str]] = {}
        for name in news:
            before = (self._n_statistics if n is None else n) - 1 if key in self._layer_state[name] else 0
            counts[name] = counts.get(name, before) + 1
            by_count.setdefault(counts[name], []).append(name)
        self._n_averaged = self._n_averaged | {key: counts}
        for k, names in by_count.items():
            known = [name for name in names if key in self._layer_state[name]]
            olds = [self._layer_state[name][key] for name in known]
            averages = lerped(olds, [news[name] for name in known], 1 - decay(k))
            for name, average in (
                {name: news[name] for name in names} | dict(zip(known, averages, strict=True))
            ).items():
                self._layer_state[name][key] = average

    def _groups(self) -> dict[nn.Parameter, dict[str, Any]]:
        """Parameter → its group."""
        return {p: group for group in self.param_groups for p in group["params"]}

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
        """Refuse directions, and what was suspected since the batch's check, where they are not finite.

        Raises:
            DivergenceError: it says what is not finite.
        """
        found = [*directions, *_one_for_each_device(self._suspects.values())]
        if found and not all_finite(found):
            what = self._bad_statistic() or "the preconditioned gradient (or what a KL clip makes of it)"
            raise DivergenceError(f"{what} is not finite for this update's batch; the parameters are unchanged")
        self._suspects = {}

    def coverage(self) -> dict[str, str]:
        """Parameter name → the layer-wise rule, the first-order fallback, or ``"frozen"``."""
        trained = [layer for layer in self._layers.values() if all(p.requires_grad for p in layer.parameters)]
        return self._coverage(self._fallback, {p: self._treatment for layer in trained for p in layer.parameters})

    # State.

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if self._process_group is not None:  # a copy belongs to the same processes
            memo[id(self._process_group)] = self._process_group
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return made

    def _extra_state(self) -> dict[str, Any]:
        return {
            "n_updates": self._n_updates,
            "n_statistics": self._n_statistics,
            "n_averaged": self._n_averaged,
            "random": self._gatherer.random.state(),
            "layers": {name: dict(state) for name, state in self._layer_state.items()},
        }

    def _check_extra_state(self, extra: dict[str, Any]) -> None:
        check_layers(extra["layers"], self._layers)
        for name, layer in self._layers.items():
            for key, value in tensors_in(extra["layers"][name]):
                shape = self.layer_shapes.get(key)
                if shape is not None:
                    lengths = [{"A": layer.d_A, "G": layer.d_G}.get(side) for side in shape]
                    check_shape(f"{key} of layer {name!r}", value.shape, lengths)

    def _load_extra_state(self, extra: dict[str, Any]) -> None:
        self._n_updates, self._n_statistics = extra["n_updates"], extra["n_statistics"]
        self._n_averaged = extra.get("n_averaged", {})
        self._gatherer.random.load(extra["random"])
        self._layer_state = {
            name: {key: value.to(layer.weight.device) for key, value in extra["layers"][name].items()}
            for name, layer in self._layers.items()
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As every optimizer's; gradients and whatever else belonged to an update are forgotten."""
        super().load_state_dict(state_dict)
        self._begin()


def _one_for_each_device(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The entries of vectors, joined: one norm takes less than many."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        by_device.setdefault(tensor.device, []).append(tensor)
    return [torch.cat(own) for own in by_device.values()]
