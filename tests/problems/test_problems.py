"""Every problem of the registry: shapes, ranges, determinism, gradients; and what is particular to single ones."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from kftune.errors import DataMissingError, UsageError
from kftune.problems import DATASETS, PROBLEMS, Problem, ProblemEntry
from tests.problems.conftest import idx_bytes, write_cifar_like, write_mnist_like

CPU = torch.device("cpu")
OWN = (
    *("cifar10_resnet20", "digits_autoencoder", "digits_mlp", "digits_resnet", "digits_transformer"),
    *("fashion_mnist_mlp", "mnist_autoencoder", "mnist_mlp"),
)
_MOST_BYTES = 500 * 2**20


def load(entry: ProblemEntry, data_dir: Path, dtype: torch.dtype = torch.float32, **args: object) -> Problem:
    problem = entry.load(device=CPU, dtype=dtype, data_dir=data_dir, **args)
    assert isinstance(problem, Problem)
    return problem


@pytest.fixture(scope="session")
def synthetic_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with every dataset, of the right sizes and made-up content."""
    data_dir = tmp_path_factory.mktemp("data")
    for dataset in DATASETS:
        (write_cifar_like if dataset == "cifar10" else write_mnist_like)(data_dir / dataset)
    return data_dir


@pytest.fixture(params=list(PROBLEMS), ids=lambda entry: entry.name)
def entry(request: pytest.FixtureRequest) -> ProblemEntry:
    value = request.param
    assert isinstance(value, ProblemEntry)
    return value


def test_sizes_ranges_and_a_step(entry: ProblemEntry, synthetic_dir: Path) -> None:
    problem = load(entry, synthetic_dir)
    assert problem.name == entry.name
    assert (len(problem.train), len(problem.test)) == (entry.n_train, entry.n_test)
    assert len(problem.train.targets) == entry.n_train
    for split in (problem.train, problem.test):
        assert split.inputs.dtype == torch.float32 or not split.inputs.is_floating_point()
        if entry.inputs == "unit_interval":
            assert (split.inputs.min(), split.inputs.max()) == (0, 1)
        elif entry.inputs == "standardised":
            deviation, mean = torch.std_mean(split.inputs)
            assert abs(mean) < 0.01
            assert abs(deviation - 1) < 0.01
    model = problem.make_model()
    targets = problem.train.targets[:50]
    output = model(problem.train.inputs[:50])
    loss = problem.loss(output, targets)
    torch.autograd.backward(loss)
    assert loss.shape == ()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in trained)
    assert entry.has_accuracy == (problem.accuracy is not None)
    if problem.likelihood == "gaussian":
        # The convention of the gaussian likelihood: the mean over examples and outputs.
        torch.testing.assert_close(loss, (output - targets).square().mean())
    if problem.likelihood == "categorical":
        assert targets.dtype == torch.int64
    if problem.accuracy is not None and targets.ndim == 1:
        n = output.shape[-1]
        assert problem.accuracy(nn.functional.one_hot(targets, n).float(), targets) == 1
        half_right = torch.where(torch.arange(50) < 25, targets, (targets + 1) % n)
        assert problem.accuracy(nn.functional.one_hot(targets, n).float(), half_right) == 0.5


def test_kftunes_own_problems_claim_all_that_can_be_claimed() -> None:
    own = [PROBLEMS.get(name) for name in OWN]
    assert all(entry.keeps_tensors and entry.inputs != "any" for entry in own)
    assert [entry.name for entry in own if not entry.has_accuracy] == ["digits_autoencoder", "mnist_autoencoder"]
    assert [entry.name for entry in own if entry.inputs == "standardised"] == ["cifar10_resnet20"]


def test_weights_follow_the_global_seed(entry: ProblemEntry, synthetic_dir: Path) -> None:
    problem = load(entry, synthetic_dir)

    def weights(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return [p.detach() for p in problem.make_model().parameters()]

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True) if a.ndim == 2)


def test_loads_the_same_every_time_and_as_the_dtype_asked_for(entry: ProblemEntry, synthetic_dir: Path) -> None:
    first, again = load(entry, synthetic_dir), load(entry, synthetic_dir)
    if entry.keeps_tensors:
        assert first.train.inputs is again.train.inputs
    for one, other in ((first.train, again.train), (first.test, again.test)):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)
    if not first.train.inputs.is_floating_point():
        return
    if first.train.inputs.nbytes > _MOST_BYTES:
        pytest.skip("more than a gigabyte in float64; test_cifar.py does it with fewer images")
    double = load(entry, synthetic_dir, torch.float64)
    assert double.train.inputs.dtype == torch.float64
    torch.testing.assert_close(double.test.inputs.float(), first.test.inputs)


@pytest.mark.parametrize("name", [entry.name for entry in PROBLEMS if "bias" in entry.args])
def test_bias_argument(name: str, synthetic_dir: Path) -> None:
    entry = PROBLEMS.get(name)
    assert entry.args == {"bias": True}
    assert load(entry, synthetic_dir).make_model().state_dict().keys() > (
        load(entry, synthetic_dir, bias=False).make_model().state_dict().keys()
    )
    with pytest.raises(UsageError, match="bias must be true or false, got 'no'"):
        load(entry, synthetic_dir, bias="no")


@pytest.mark.parametrize(
    ("name", "args", "why"),
    [
        ("digits_resnet", {"width": 0}, "width must be a whole number of at least 1, got 0"),
        ("digits_transformer", {"width": 30}, "width must be a multiple of the 4 heads, got 30"),
        ("cifar10_resnet20", {"width": True}, "width must be a whole number of at least 1, got True"),
        (
            "cifar10_resnet20",
            {"depth": 21},
            r"depth must be 6n \+ 2 for a whole n of at least 1 .*, got 21",
        ),
        ("cifar10_resnet20", {"depth": 2}, "depth must be 6n"),
        ("cifar10_resnet20", {"depth": 20.0}, "depth must be a whole number of at least 1, got 20.0"),
    ],
)
def test_sizes_that_no_network_has(tmp_path: Path, name: str, args: dict[str, object], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        load(PROBLEMS.get(name), tmp_path, **args)


def test_missing_files_are_named_with_directory_and_remedy(entry: ProblemEntry, tmp_path: Path) -> None:
    if entry.dataset is None:
        load(entry, tmp_path)
        return
    with pytest.raises(DataMissingError) as caught:
        load(entry, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path / entry.dataset) in message
    assert f"`kftune data fetch {entry.dataset}`" in message
    assert all(file.name in message for file in DATASETS[entry.dataset].files)


def test_only_the_absent_file_is_named(tmp_path: Path) -> None:
    write_mnist_like(tmp_path / "mnist", n_train=3, n_test=3)
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataMissingError, match=r"^mnist: t10k-labels-idx1-ubyte.gz not found in"):
        load(PROBLEMS.get("mnist_mlp"), tmp_path)


def test_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    write_mnist_like(tmp_path / "mnist", n_train=3)
    with pytest.raises(UsageError, match=r"train-images-idx3-ubyte.gz must hold 60000 images of 28×28"):
        load(PROBLEMS.get("mnist_autoencoder"), tmp_path)
    write_mnist_like(tmp_path / "mnist", largest_label=10)
    with pytest.raises(UsageError, match=r"train-labels-idx1-ubyte.gz must hold 60000 labels below 10, got 60000"):
        load(PROBLEMS.get("mnist_mlp"), tmp_path)


def test_failure_is_not_remembered(tmp_path: Path) -> None:
    entry = PROBLEMS.get("mnist_mlp")
    with pytest.raises(DataMissingError):
        load(entry, tmp_path)
    write_mnist_like(tmp_path / "mnist")
    assert len(load(entry, tmp_path).train) == 60_000


def test_digits_are_split_without_loss_or_overlap(tmp_path: Path) -> None:
    problem = load(PROBLEMS.get("digits_mlp"), tmp_path, torch.float64)
    pixels, labels = load_digits(return_X_y=True)
    ours = np.column_stack(
        [
            np.concatenate([problem.train.inputs.numpy(), problem.test.inputs.numpy()]) * 16,
            np.concatenate([problem.train.targets.numpy(), problem.test.targets.numpy()]),
        ]
    )
    theirs = np.column_stack([pixels, labels])
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])
    # A split that mixes: every digit about as often among test examples as among all.
    shares = torch.bincount(problem.test.targets, minlength=10) / len(problem.test)
    assert shares.min() > 0.05
    assert shares.max() < 0.15


def test_autoencoder_of_the_thesis(synthetic_dir: Path) -> None:
    model = load(PROBLEMS.get("mnist_autoencoder"), synthetic_dir, bias=False).make_model()
    assert isinstance(model, nn.Sequential)
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    widths = [784, 1000, 500, 250, 30, 250, 500, 1000, 784]
    assert [layer.in_features for layer in linear] + [linear[-1].out_features] == widths
    assert [type(layer) for layer in model] == [nn.Linear, nn.Tanh] * 7 + [nn.Linear]
    for layer in linear:
        # Uniform on ±√(6/(n_in+n_out)): the bound is reached nearly, the variance is bound²/3.
        bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
        assert bound * 0.99 < layer.weight.abs().max() <= bound
        torch.testing.assert_close(layer.weight.var(), torch.tensor(bound**2 / 3), rtol=0.05, atol=0)


def test_relu_network_keeps_the_variance_of_its_inputs(synthetic_dir: Path) -> None:
    torch.manual_seed(0)
    model = load(PROBLEMS.get("mnist_mlp"), synthetic_dir).make_model()
    output = model(torch.randn(2000, 784))
    # He et al.: E[y²] = 2·E[x²] at the first layer (its inputs are not rectified), then constant.
    assert 1.5 < output.square().mean() < 2.7


def test_real_mnist(mnist_dir: Path) -> None:
    problem = load(PROBLEMS.get("mnist_mlp"), mnist_dir)
    decoded = [
        idx_bytes((split.inputs * 255).round().to(torch.uint8).reshape(-1, 28, 28).numpy())
        if part == "images"
        else idx_bytes(split.targets.to(torch.uint8).numpy())
        for split in (problem.train, problem.test)
        for part in ("images", "labels")
    ]
    # The checksums that the original distribution's decompressed files have.
    assert [hashlib.md5(content).hexdigest() for content in decoded] == [
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ]


def test_real_mnist_autoencoder_shares_the_images(mnist_dir: Path) -> None:
    autoencoder = load(PROBLEMS.get("mnist_autoencoder"), mnist_dir)
    assert autoencoder.train.targets is autoencoder.train.inputs
    assert autoencoder.train.inputs is load(PROBLEMS.get("mnist_mlp"), mnist_dir).train.inputs


def test_listing_problems_imports_nothing_heavy_beyond_torch() -> None:
    code = (
        "import sys; from kftune.problems import PROBLEMS; PROBLEMS.names();"
        "print([m for m in ('sklearn', 'pooch', 'requests', 'rich', 'pandas', 'optuna') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
