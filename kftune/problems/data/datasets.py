"""Which datasets there are.

Checksums are those of the *decompressed* content: mirrors compress anew. An archive's checksum is its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from kftune.errors import UnknownNameError

__all__ = ["DATASETS", "DataFile", "Dataset", "get_dataset"]


@dataclass(frozen=True)
class DataFile:
    """One file.

    Attributes:
        name: as it is distributed.
        md5: of its decompressed content; of the file itself if it is an archive.
        members: of an archive, the files that are needed, as they lie in it; none for any other file.
    """

    name: str
    md5: str
    members: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Files that belong together.

    Attributes:
        name: its directory, and the name for ``kftune data fetch``.
        summary: one line.
        source: as one would cite it, with the licence.
        files: in the order in which its reader takes them.
        urls: where the files are, first choice first; a file's name is appended.
    """

    name: str
    summary: str
    source: str
    files: tuple[DataFile, ...]
    urls: tuple[str, ...]


def _mnist_like(train_images: str, train_labels: str, test_images: str, test_labels: str) -> tuple[DataFile, ...]:
    return (
        DataFile("train-images-idx3-ubyte.gz", train_images),
        DataFile("train-labels-idx1-ubyte.gz", train_labels),
        DataFile("t10k-images-idx3-ubyte.gz", test_images),
        DataFile("t10k-labels-idx1-ubyte.gz", test_labels),
    )


_CIFAR_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")

DATASETS = {
    "mnist": Dataset(
        name="mnist",
        summary="70,000 handwritten digits, 28×28 grey pixels, 10 classes (11 MB)",
        source="LeCun, Bottou, Bengio & Haffner 1998; the authors state no licence, mirrors CC BY-SA 3.0",
        files=_mnist_like(
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
        urls=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
    ),
    "fashion_mnist": Dataset(
        name="fashion_mnist",
        summary="70,000 pictures of clothes, 28×28 grey pixels, 10 classes (30 MB)",
        source="Xiao, Rasul & Vollgraf 2017 (arXiv:1708.07747), MIT licence",
        files=_mnist_like(
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
        urls=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
    ),
    "cifar10": Dataset(
        name="cifar10",
        summary="60,000 photographs, 32×32 colour pixels, 10 classes (170 MB)",
        source="Krizhevsky: Learning multiple layers of features from tiny images, 2009; no licence stated",
        files=(
            DataFile(
                "cifar-10-binary.tar.gz",
                "c32a1d4ab5d03f1284b67883e8d87530",
                members=tuple(f"cifar-10-batches-bin/{name}.bin" for name in _CIFAR_BATCHES),
            ),
        ),
        urls=("https://www.cs.toronto.edu/~kriz/",),
    ),
}
"""Every dataset that is read from the data directory, by name."""


def get_dataset(name: str) -> Dataset:
    """The dataset called ``name``.

    Raises:
        UnknownNameError: if there is none.
    """
    if name not in DATASETS:
        raise UnknownNameError("dataset", name, DATASETS)
    return DATASETS[name]
