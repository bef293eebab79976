"""Problems on scikit-learn's bundled digits: real handwriting, 8×8 pixels, no download."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from kftune.problems._base import Problem, ProblemEntry, Split
from kftune.problems._networks import check_bool, fully_connected, share_correct, to_device

_N_TRAIN, _N_TEST = 1437, 360
_LARGEST_PIXEL = 16
_AUTOENCODER_WIDTHS = (64, 48, 24, 8, 24, 48, 64)
_MLP_WIDTHS = (64, 64, 64, 10)


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
    )


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
    from sklearn.datasets import load_digits  # slow to import, and the other problems do without

    digits = load_digits()
    return digits.data, digits.target


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
    ),
    ProblemEntry(
        name="digits_mlp",
        load=load_mlp,
        summary="scikit-learn's 8×8 digits, classifier 64-64-64-10, ReLU, cross-entropy",
        source=_SOURCE,
        n_train=_N_TRAIN,
        n_test=_N_TEST,
        args={"bias": True},
        has_accuracy=True,
    ),
)
