"""Problems on CIFAR-10, read from its binary distribution in the data directory."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from kftune.errors import UsageError
from kftune.problems._base import Problem, ProblemEntry, Split
from kftune.problems._checks import check_count
from kftune.problems._examples import share_correct
from kftune.problems.data.datasets import DATASETS
from kftune.problems.data.directory import locate
from kftune.problems.networks.residual import ResidualNetwork
from kftune.problems.readers.cifar import N_RECORDS, SHAPE, read_batches

_N_TRAIN, _N_TEST, _N_CLASSES = 50_000, 10_000, 10
_DEPTH, _WIDTH, _N_STAGES = 20, 16, 3
_LARGEST_PIXEL = 255


def load_resnet(
    *, device: torch.device, dtype: torch.dtype, data_dir: Path, depth: int = _DEPTH, width: int = _WIDTH
) -> Problem:
    """Tell ten classes of photographs apart: a residual network of He et al. 2016, section 4.2, cross-entropy.

    Three stages of (depth − 2)/6 basic blocks of ``width``, 2·``width`` and 4·``width`` channels, batch normalisation,
    and shortcuts without parameters. Every colour channel of the images has mean 0 and variance 1 over the training
    set; they are not augmented.

    Args:
        device: where the data go, (n, 3, 32, 32).
        dtype: of the data.
        data_dir: holds ``cifar10/``.
        depth: layers with weights, 8, 14, 20, …
        width: channels of the first stage.

    Raises:
        DataMissingError: the data are not there.
        UsageError: a file is corrupt, or an argument's value is not allowed.
    """
    n_blocks, rest = divmod(check_count("depth", depth) - 2, 2 * _N_STAGES)
    if n_blocks < 1 or rest:
        raise UsageError(f"depth must be 6n + 2 for a whole n of at least 1 (8, 14, 20, …), got {depth!r}")
    check_count("width", width)
    train, test = _tensors(data_dir, device, dtype)
    return Problem(
        name="cifar10_resnet20",
        likelihood="categorical",
        make_model=functools.partial(
            ResidualNetwork,
            n_channels=SHAPE[0],
            widths=[width * 2**stage for stage in range(_N_STAGES)],
            n_blocks=n_blocks,
            n_classes=_N_CLASSES,
        ),
        loss=cross_entropy,
        train=Split(*train),
        test=Split(*test),
        accuracy=share_correct,
        accuracy_is_mean=True,
    )


# 740 MB as float32: a warm worker should make it once, and hold no more than one.
@functools.lru_cache(maxsize=1)
def _tensors(
    data_dir: Path, device: torch.device, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    (path,) = locate(DATASETS["cifar10"], data_dir)
    *train, test = read_batches(path, DATASETS["cifar10"].files[0])
    mean, deviation = _channel_moments([images for images, _ in train])
    normalised = functools.partial(_normalised, mean=mean, deviation=deviation, device=device, dtype=dtype)
    return normalised(train), normalised([test])


def _channel_moments(batches: list[NDArray[np.uint8]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of every channel over all images, from counts of the 256 pixel values: exact."""
    counts = np.zeros((SHAPE[0], _LARGEST_PIXEL + 1))
    for images in batches:
        for channel in range(SHAPE[0]):
            counts[channel] += np.bincount(images[:, channel].ravel(), minlength=_LARGEST_PIXEL + 1)
    values = np.arange(_LARGEST_PIXEL + 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    variance = (shares * (values - mean[:, None]) ** 2).sum(axis=1)
    # A channel of one value alone becomes 0.
    return mean, np.sqrt(np.where(variance > 0, variance, 1.0))


def _normalised(
    batches: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]],
    *,
    mean: NDArray[np.float64],
    deviation: NDArray[np.float64],
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """(pixels − mean)/deviation and labels as tensors on ``device``, batch by batch to save memory."""
    images = torch.empty((len(batches) * N_RECORDS, *SHAPE), dtype=dtype, device=device)
    moments: list[Any] = [torch.tensor(m, dtype=dtype, device=device)[:, None, None] for m in (mean, deviation)]
    for i, (pixels, _) in enumerate(batches):
        part = images[i * N_RECORDS : (i + 1) * N_RECORDS]
        part.copy_(torch.tensor(pixels)).sub_(moments[0]).div_(moments[1])
    labels = np.concatenate([labels for _, labels in batches])
    return images, torch.tensor(labels, dtype=torch.int64, device=device)


ENTRIES = (
    ProblemEntry(
        name="cifar10_resnet20",
        load=load_resnet,
        summary="CIFAR-10, residual network of 20 layers with 16, 32, 64 channels, BatchNorm, cross-entropy",
        source=DATASETS["cifar10"].source,
        n_train=_N_TRAIN,
        n_test=_N_TEST,
        args={"depth": _DEPTH, "width": _WIDTH},
        sized_by=(),
        dataset="cifar10",
        has_accuracy=True,
        inputs="standardised",
        keeps_tensors=True,
    ),
)
