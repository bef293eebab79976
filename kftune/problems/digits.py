"""Problems on scikit-learn's bundled digits: real handwriting, 8×8 pixels, no download."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from kftune.errors import DataMissingError, UsageError
from kftune.problems._base import Problem, ProblemEntry, Split
from kftune.problems._checks import check_bool, check_count
from kftune.problems._examples import share_correct, to_device
from kftune.problems.networks.fully_connected import fully_connected
from kftune.problems.networks.residual import ResidualNetwork
from kftune.problems.networks.transformer import Transformer

_N_TRAIN, _N_TEST = 1437, 360
_LARGEST_PIXEL = 16
_AUTOENCODER_WIDTHS = (64, 48, 24, 8, 24, 48, 64)
_MLP_WIDTHS = (64, 64, 64, 10)
_SIDE, _N_CLASSES = 8, 10
_RESNET_WIDTH = 16
_TRANSFORMER_WIDTH, _N_HEADS = 32, 4


def load_autoencoder(*, device: torch.device, dtype: torch.dtype, data_dir: Path, bias: bool = True) -> Problem:
    """Reconstruct the pixels through 8 numbers: 64-48-24-8-24-48-64, tanh, linear output, mean squared error.

    Args:
        device: where the data go.
        dtype: of the data.
        data_dir: not used.
        bias: whether the layers have biases.

    Raises:
        UsageError: ``bias`` is not a bool.
    """
    check_bool("bias", bias)
    (train_pixels, _), (test_pixels, _) = _tensors(device, dtype)
    return Problem(
        name="digits_autoencoder",
        likelihood="gaussian",
        make_model=functools.partial(fully_connected, _AUTOENCODER_WIDTHS, activation=nn.Tanh, bias=bias),
        loss=mse_loss,
        train=Split(train_pixels, train_pixels),
        test=Split(test_pixels, test_pixels),
    )


def load_mlp(*, device: torch.device, dtype: torch.dtype, data_dir: Path, bias: bool = True) -> Problem:
    """Tell the ten digits apart: 64-64-64-10, ReLU, cross-entropy.

    Args:
        device: where the data go.
        dtype: of the data.
        data_dir: not used.
        bias: whether the layers have biases.

    Raises:
        UsageError: ``bias`` is not a bool.
    """
    check_bool("bias", bias)
    train, test = _tensors(device, dtype)
    return Problem(
        name="digits_mlp",
        likelihood="categorical",
        make_model=functools.partial(fully_connected, _MLP_WIDTHS, activation=nn.ReLU, bias=bias),
        loss=cross_entropy,
        train=Split(*train),
        test=Split(*test),
        accuracy=share_correct,
        accuracy_is_mean=True,
    )


def load_resnet(*, device: torch.device, dtype: torch.dtype, data_dir: Path, width: int = _RESNET_WIDTH) -> Problem:
    """Tell the ten digits apart: a residual network on 1×8×8 images with two blocks, BatchNorm, cross-entropy.

    Args:
        device: where the data go, (n, 1, 8, 8).
        dtype: of the data.
        data_dir: not used.
        width: channels of the first block; the second has twice as many at half the resolution.

    Raises:
        UsageError: ``width`` is not a whole number of at least 1.
    """
    check_count("width", width)
    make_model = functools.partial(
        ResidualNetwork, n_channels=1, widths=(width, 2 * width), n_blocks=1, n_classes=_N_CLASSES
    )
    return _classifier("digits_resnet", make_model, device, dtype, (1, _SIDE, _SIDE))


def load_transformer(
    *, device: torch.device, dtype: torch.dtype, data_dir: Path, width: int = _TRANSFORMER_WIDTH
) -> Problem:
    """Tell the ten digits apart: a transformer with two blocks on sequences of 8 rows of 8 pixels, cross-entropy.

    Args:
        device: where the data go, (n, 8, 8).
        dtype: of the data.
        data_dir: not used.
        width: of a token, a multiple of the 4 heads.

    Raises:
        UsageError: ``width`` is not a multiple of 4.
    """
    if check_count("width", width) % _N_HEADS:
        raise UsageError(f"width must be a multiple of the {_N_HEADS} heads, got {width!r}")
    make_model = functools.partial(
        Transformer,
        n_tokens=_SIDE,
        n_inputs=_SIDE,
        width=width,
        n_blocks=2,
        n_heads=_N_HEADS,
        n_hidden=2 * width,
        n_classes=_N_CLASSES,
    )
    return _classifier("digits_transformer", make_model, device, dtype, (_SIDE, _SIDE))


def _classifier(
    name: str, make_model: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]
) -> Problem:
    train, test = _shaped(device, dtype, shape)
    return Problem(
        name=name,
        likelihood="categorical",
        make_model=make_model,
        loss=cross_entropy,
        train=train,
        test=test,
        accuracy=share_correct,
        accuracy_is_mean=True,
    )


@functools.lru_cache(maxsize=4)
def _shaped(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[Split, Split]:
    """Training and test examples with images of another shape, in the memory of :func:`_tensors`."""
    train, test = (Split(pixels.view(-1, *shape), labels) for pixels, labels in _tensors(device, dtype))
    return train, test


@functools.lru_cache(maxsize=4)
def _tensors(device: torch.device, dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    images, labels = _digits()
    # RandomState, not Generator: numpy promises that its stream never changes, and the split must not either.
    order = np.random.RandomState(0).permutation(_N_TRAIN + _N_TEST)
    train, test = order[:_N_TRAIN], order[_N_TRAIN:]
    return (
        to_device(images[train], labels[train], device=device, dtype=dtype, scale=_LARGEST_PIXEL),
        to_device(images[test], labels[test], device=device, dtype=dtype, scale=_LARGEST_PIXEL),
    )


def _digits() -> tuple[NDArray[Any], NDArray[Any]]:
    """Pixels (1797, 64) from 0 to 16, and labels (1797,)."""
    # The file itself: importing scikit-learn takes two seconds, in every worker anew.
    spec = importlib.util.find_spec("sklearn")
    places = spec.submodule_search_locations if spec is not None and spec.submodule_search_locations else []
    path = Path(*places[:1]) / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise DataMissingError(f"{path} is missing; it comes with scikit-learn: pip install scikit-learn")
    table = np.loadtxt(path, delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int64)


_SOURCE = "Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI 1998 (test part, as in scikit-learn)"

ENTRIES = (
    ProblemEntry(
        name="digits_autoencoder",
        load=load_autoencoder,
        summary="scikit-learn's 8×8 digits, autoencoder 64-48-24-8-24-48-64, tanh, mean squared error",
        source=_SOURCE,
        n_train=_N_TRAIN,
        n_test=_N_TEST,
        args={"bias": True},
        sized_by=(),
        inputs="unit_interval",
        keeps_tensors=True,
    ),
    ProblemEntry(
        name="digits_mlp",
        load=load_mlp,
        summary="scikit-learn's 8×8 digits, classifier 64-64-64-10, ReLU, cross-entropy",
        source=_SOURCE,
        n_train=_N_TRAIN,
        n_test=_N_TEST,
        args={"bias": True},
        sized_by=(),
        has_accuracy=True,
        inputs="unit_interval",
        keeps_tensors=True,
    ),
    ProblemEntry(
        name="digits_resnet",
        load=load_resnet,
        summary="scikit-learn's 8×8 digits, residual network with 16 and 32 channels, BatchNorm, cross-entropy",
        source=_SOURCE,
        n_train=_N_TRAIN,
        n_test=_N_TEST,
        args={"width": _RESNET_WIDTH},
        sized_by=(),
        has_accuracy=True,
        inputs="unit_interval",
        keeps_tensors=True,
    ),
    ProblemEntry(
        name="digits_transformer",
        load=load_transformer,
        summary="scikit-learn's digits as 8 rows, transformer of two blocks, 4 heads, cross-entropy",
        source=_SOURCE,
        n_train=_N_TRAIN,
        n_test=_N_TEST,
        args={"width": _TRANSFORMER_WIDTH},
        sized_by=(),
        has_accuracy=True,
        inputs="unit_interval",
        keeps_tensors=True,
    ),
)
