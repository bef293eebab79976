"""What a problem is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn


@dataclass(frozen=True)
class Split:
    """Examples as tensors on the run's device: ``inputs`` (n, …) and ``targets`` (n, …)."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Data on a device, and how to make and judge a model.

    Attributes:
        name: as in the registry.
        likelihood: the predictive distribution that ``loss`` belongs to.
        make_model: a fresh model on the CPU in float32; its weights come from torch's global generator, so that
            ``torch.manual_seed`` before the call fixes them.
        loss: (output, targets) → mean over examples, a scalar.
        train: training examples.
        test: held-out examples.
        accuracy: (output, targets) → share of correct predictions, a scalar; None where it has no meaning. Anything
            between 0 and 1 that is better the larger it is may stand for it.
        accuracy_is_mean: whether ``accuracy`` is a mean over examples, so that the mean over parts of a split, weighted
            by their size, is that of the whole; else it is taken of the outputs of all examples at once.
    """

    name: str
    likelihood: Literal["categorical", "gaussian", "bernoulli"]
    make_model: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    train: Split
    test: Split
    accuracy: Callable[[Tensor, Tensor], Tensor] | None = None
    accuracy_is_mean: bool = False


ProblemLoader: TypeAlias = Callable[..., Problem]
"""Loads a problem onto a device: ``load(device=torch.device, dtype=torch.dtype, data_dir=Path, **args)``, where
``args`` are the problem's own (see :attr:`ProblemEntry.args`). Raises DataMissingError if its files are not in
``data_dir``, and UsageError if a file is corrupt or an argument's value is not allowed.

Two calls with the same arguments give equal examples in the same order, in this process or another: every run loads its
problem anew, and all runs are compared. Examples come shuffled or in a class-balanced order, since the train loss is
measured on the first of them. Inputs that are floating-point numbers have the ``dtype`` asked for; in another they are
the same numbers, rounded."""

Inputs: TypeAlias = Literal["unit_interval", "standardised", "any"]
"""What the inputs of both splits look like: their least is 0 and their largest 1; their mean is 0 and their standard
deviation 1 (to 0.01); or nothing is said. kftune needs none of it, but learning rates and damping are searched in boxes
that suit the first two."""


@dataclass(frozen=True, kw_only=True)
class ProblemEntry:
    """One problem of the registry.

    Attributes:
        name: its name in a study file, ``{dataset}_{model}``.
        load: see :data:`ProblemLoader`.
        summary: one line.
        source: where data and network come from, as one would cite it.
        n_train: number of training examples (batch sizes are checked against it), with the arguments at their defaults.
        n_test: number of test examples, likewise.
        args: argument name → default, for ``problems: [{name: …, args: {…}}]``.
        dataset: name for ``kftune data fetch``; None if the data come with an installed package.
        has_accuracy: whether its problems have an accuracy (then ``objective: test_error`` makes sense).
        sized_by: the arguments that change ``n_train``, ``n_test`` or ``has_accuracy``; None if any may. Where one of
            them is given, the problem is loaded once to be counted.
        inputs: see :data:`Inputs`; the shared tests check what is claimed here.
        keeps_tensors: whether a second call of ``load`` with the same arguments gives the tensors of the first, not
            equal ones: a worker that makes many runs then holds its data once, and does not read them again.
    """

    name: str
    load: ProblemLoader
    summary: str
    source: str
    n_train: int
    n_test: int
    args: Mapping[str, Any] = field(default_factory=dict)
    dataset: str | None = None
    has_accuracy: bool = False
    sized_by: Collection[str] | None = None
    inputs: Inputs = "any"
    keeps_tensors: bool = False
