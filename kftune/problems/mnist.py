"""Problems on MNIST and Fashion-MNIST, read from IDX files in the data directory."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from kftune.errors import UsageError
from kftune.problems._base import Problem, ProblemEntry, ProblemLoader, Split
from kftune.problems._checks import check_bool
from kftune.problems._examples import share_correct, to_device
from kftune.problems.data.datasets import DATASETS
from kftune.problems.data.directory import locate
from kftune.problems.networks.fully_connected import fully_connected
from kftune.problems.readers.idx import read_idx

_N_TRAIN, _N_TEST = 60_000, 10_000
_SIDE, _N_CLASSES, _LARGEST_PIXEL = 28, 10, 255
_AUTOENCODER_WIDTHS = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)
_MLP_WIDTHS = (784, 1000, 1000, 1000, 10)


def load_autoencoder(*, device: torch.device, dtype: torch.dtype, data_dir: Path, bias: bool = True) -> Problem:
    """Reconstruct the pixels through 30 numbers: 784-1000-500-250-30-250-500-1000-784 (Hinton & Salakhutdinov 2006).

    As in Ulbæk 2022: tanh after every layer but the last, linear output, Xavier-uniform weights, mean squared error
    over pixels; there without biases.

    Args:
        device: where the data go.
        dtype: of the data.
        data_dir: holds ``mnist/``.
        bias: whether the layers have biases.

    Raises:
        DataMissingError: a file is not there.
        UsageError: a file is corrupt, or ``bias`` is not a bool.
    """
    check_bool("bias", bias)
    (train_pixels, _), (test_pixels, _) = _tensors("mnist", data_dir, device, dtype)
    return Problem(
        name="mnist_autoencoder",
        likelihood="gaussian",
        make_model=functools.partial(fully_connected, _AUTOENCODER_WIDTHS, activation=nn.Tanh, bias=bias),
        loss=mse_loss,
        train=Split(train_pixels, train_pixels),
        test=Split(test_pixels, test_pixels),
    )


def load_mlp(
    *, device: torch.device, dtype: torch.dtype, data_dir: Path, bias: bool = True, dataset: str = "mnist"
) -> Problem:
    """Tell ten classes apart: 784-1000-1000-1000-10, ReLU, He-uniform weights, cross-entropy.

    Args:
        device: where the data go.
        dtype: of the data.
        data_dir: holds the directory named ``dataset``.
        bias: whether the layers have biases.
        dataset: ``"mnist"`` or ``"fashion_mnist"``; set by the registry's entries.

    Raises:
        DataMissingError: a file is not there.
        UsageError: a file is corrupt, or ``bias`` is not a bool.
    """
    check_bool("bias", bias)
    train, test = _tensors(dataset, data_dir, device, dtype)
    return Problem(
        name=f"{dataset}_mlp",
        likelihood="categorical",
        make_model=functools.partial(fully_connected, _MLP_WIDTHS, activation=nn.ReLU, bias=bias),
        loss=cross_entropy,
        train=Split(*train),
        test=Split(*test),
        accuracy=share_correct,
        accuracy_is_mean=True,
    )


# One dataset is 220 MB as float32 and takes a second to read: a warm worker should do it once, and not hold many.
@functools.lru_cache(maxsize=2)
def _tensors(
    dataset: str, data_dir: Path, device: torch.device, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    train_images, train_labels, test_images, test_labels = locate(DATASETS[dataset], data_dir)
    return (
        _read(train_images, train_labels, _N_TRAIN, device=device, dtype=dtype),
        _read(test_images, test_labels, _N_TEST, device=device, dtype=dtype),
    )


def _read(
    images_path: Path, labels_path: Path, n: int, *, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    images, labels = read_idx(images_path, rank=3), read_idx(labels_path, rank=1)
    if images.shape != (n, _SIDE, _SIDE):
        raise UsageError(f"{images_path} must hold {n} images of {_SIDE}×{_SIDE} pixels, got shape {images.shape}")
    if labels.shape != (n,) or labels.max() >= _N_CLASSES:
        raise UsageError(
            f"{labels_path} must hold {n} labels below {_N_CLASSES}, got {len(labels)}, the largest {labels.max()}"
        )
    return to_device(images, labels, device=device, dtype=dtype, scale=_LARGEST_PIXEL)


def _entry(name: str, load: ProblemLoader, summary: str, dataset: str) -> ProblemEntry:
    return ProblemEntry(
        name=name,
        load=load,
        summary=summary,
        source=DATASETS[dataset].source,
        n_train=_N_TRAIN,
        n_test=_N_TEST,
        args={"bias": True},
        sized_by=(),
        dataset=dataset,
        has_accuracy=name.endswith("_mlp"),
        inputs="unit_interval",
        keeps_tensors=True,
    )


ENTRIES = (
    _entry(
        "mnist_autoencoder",
        load_autoencoder,
        "MNIST, autoencoder 784-1000-500-250-30-250-500-1000-784, tanh, mean squared error",
        "mnist",
    ),
    _entry("mnist_mlp", load_mlp, "MNIST, classifier 784-1000-1000-1000-10, ReLU, cross-entropy", "mnist"),
    _entry(
        "fashion_mnist_mlp",
        functools.partial(load_mlp, dataset="fashion_mnist"),
        "Fashion-MNIST, classifier 784-1000-1000-1000-10, ReLU, cross-entropy",
        "fashion_mnist",
    ),
)
