"""What a layer's output does not show, and inputs that are not one row for each example."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kftune.optim import CGFAC, EKFAC, FOOF, KFAC, SKFAC, NaturalGradient, TwoLevelKFAC
from kftune.optim.curvature.random import Random
from kftune.optim.interface import ModelOptimizer

Make = Callable[[nn.Module], ModelOptimizer]

THIN: dict[str, Make] = {
    "kfac": lambda model: KFAC(model, lr=0.1, likelihood="gaussian", fisher="exact"),
    "foof": lambda model: FOOF(model, lr=0.1, likelihood="gaussian"),
    "ekfac": lambda model: EKFAC(model, lr=0.1, likelihood="gaussian", fisher="exact"),
    "skfac": lambda model: SKFAC(model, lr=0.1, likelihood="gaussian", fisher="exact"),
    "two_level_kfac": lambda model: TwoLevelKFAC(model, lr=0.1, likelihood="gaussian", fisher="exact"),
}
"""Those that may keep a gradient in its two factors; of eight examples and 24 units, all do."""

X = torch.randn(8, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A layer, and another one whose weight is either its own or the first one's, transposed."""

    def __init__(self, *, tied: bool = False, doubled: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(24, 24, bias=not tied)
        self.second = None if tied else nn.Linear(24, 24)
        self.doubled = doubled

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        if self.doubled:
            hidden = hidden + torch.tanh(self.first.forward(0.5 * x))  # no hook sees this
        return functional.linear(hidden, self.first.weight.T) if self.second is None else self.second(hidden)


def double(model: nn.Module) -> nn.Module:
    """The same in float64, with fixed weights."""
    generator = torch.Generator().manual_seed(1)
    for p in model.double().parameters():
        p.data = 0.2 * torch.randn(p.shape, dtype=p.dtype, generator=generator)
    return model


def moved(make: Make, model: nn.Module, closure: Callable[[], tuple[Tensor, Tensor]], *, in_one: bool) -> Tensor:
    """The parameters after two updates."""
    optimizer = make(model)
    for _ in range(2):
        if in_one:
            optimizer.step(closure)
        else:
            optimizer.accumulate(closure)
            optimizer.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("name", THIN)
@pytest.mark.parametrize("what", ["plain", "penalty", "tied", "doubled"])
def test_what_goes_round_a_layer_s_output_counts(name: str, what: str) -> None:
    found = []
    for in_one in (True, False):
        model = double(Net(tied=what == "tied", doubled=what == "doubled"))

        def closure(model: nn.Module = model) -> tuple[Tensor, Tensor]:
            output = model(X)
            loss = functional.mse_loss(output, X)
            if what == "penalty":
                loss = loss + 0.1 * sum(p.square().sum() for p in model.parameters())
            return loss, output

        found.append(moved(THIN[name], model, closure, in_one=in_one))
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", THIN)
@pytest.mark.parametrize("frozen", ["first", "first.bias"])
def test_what_is_frozen_later_stays(name: str, frozen: str) -> None:
    model = double(Net())
    optimizer = THIN[name](model)
    chosen = {key for key, _ in model.named_parameters() if key.startswith(frozen)}
    for key, p in model.named_parameters():
        p.requires_grad_(key not in chosen)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}

    def closure() -> tuple[Tensor, Tensor]:
        output = model(X)
        return functional.mse_loss(output, X), output

    for _ in range(2):
        optimizer.step(closure)
    assert {key for key, p in model.named_parameters() if torch.equal(p, before[key])} == chosen
    said = optimizer.coverage()
    assert {key for key, what in said.items() if what == "frozen"} == chosen
    assert said["first.weight"] != said["second.weight"]  # a layer without its bias has no rule


class Sequences(nn.Module):
    """One layer at every place of a sequence, and the mean over the sequence after it."""

    def __init__(self, *, examples_first: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.examples_first = examples_first

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.examples_first else x.transpose(0, 1)
        return torch.tanh(self.layer(x)).mean(dim=1 if self.examples_first else 0)


@pytest.mark.parametrize("n_positions", [5, 24])  # 24 is a multiple of the 12 examples
@pytest.mark.parametrize("method", [KFAC, EKFAC, TwoLevelKFAC, NaturalGradient, CGFAC])
def test_sequences_may_stand_before_examples(method: Any, n_positions: int) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(12, n_positions, 3, dtype=torch.float64, generator=generator)
    y = torch.randn(12, 4, dtype=torch.float64, generator=generator)
    found = []
    for examples_first in (True, False):
        model = double(Sequences(examples_first=examples_first))

        def closure(model: nn.Module = model) -> tuple[Tensor, Tensor]:
            output = model(x)
            return functional.mse_loss(output, y), output

        found.append(
            moved(
                lambda model: method(model, lr=0.1, likelihood="gaussian", fisher="exact"), model, closure, in_one=False
            )
        )
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-10)


def test_reduced_sequences_must_stand_behind_examples() -> None:
    model = double(Sequences(examples_first=False))
    optimizer = KFAC(model, lr=0.1, likelihood="gaussian", weight_sharing="reduce")
    x = torch.randn(12, 5, 3, dtype=torch.float64)

    def closure() -> tuple[Tensor, Tensor]:
        output = model(x)
        return output.square().mean(), output

    with pytest.raises(RuntimeError, match=r"layer 'layer' for 5 examples, and the closure returned 12: .*batch_first"):
        optimizer.step(closure)


@pytest.mark.parametrize("name", ["kfac", "foof", "ekfac"])
def test_rows_that_are_no_multiple_of_the_examples(name: str) -> None:
    mask = torch.tensor([True, False, True, True, False, False, True, True])
    found = []
    for in_one in (True, False):
        model = double(nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 24)))

        def closure(model: nn.Module = model) -> tuple[Tensor, Tensor]:
            output = model(X)[mask]
            return functional.mse_loss(output, X[mask]), output

        if name == "ekfac":  # it squares the gradients of single examples
            with pytest.raises(RuntimeError, match=r"layer '0' was given 8 inputs, .* of the 5 examples"):
                moved(THIN[name], model, closure, in_one=in_one)
        else:
            found.append(moved(THIN[name], model, closure, in_one=in_one))
    if found:
        torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-10)


def test_examples_are_not_cut_in_two() -> None:
    model = double(nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)))
    x = torch.randn(4, 2, 24, dtype=torch.float64)

    def closure() -> tuple[Tensor, Tensor]:
        output = torch.cat([model(x), model(2 * x)])
        return output.square().mean(), output

    with pytest.raises(RuntimeError, match=r"layer '0' was given 4 inputs, .* of the 8 examples"):
        NaturalGradient(model, lr=0.1, likelihood="gaussian").step(closure)


def draws(random: Random) -> list[float]:
    drawn: list[float] = torch.rand(3, generator=random.on(torch.device("cpu"))).tolist()
    return drawn


def test_processes_draw_different_numbers_even_after_loading_one_state() -> None:
    cpu = torch.device("cpu")
    first, second = (Random(7, process=rank, device=cpu) for rank in (0, 1))
    assert draws(first) != draws(second)
    state = first.state()
    expected = draws(first)
    for rank, is_equal in ((0, True), (1, False)):
        loaded = Random(3, process=rank, device=cpu)
        loaded.load(state)
        assert (draws(loaded) == expected) == is_equal


def test_a_state_of_another_kind_of_device_is_taken_but_for_its_stream() -> None:
    cpu = torch.device("cpu")
    state = Random(7, process=0, device=cpu).state() | {"device": "cuda", "state": torch.zeros(16, dtype=torch.uint8)}
    one, other = (Random(7, process=0, device=cpu) for _ in range(2))
    for random in (one, other):
        random.load(state)
    new = draws(one)
    assert new == draws(other)  # a function of the seed
    assert new != draws(Random(7, process=0, device=cpu))


def test_several_copies_of_the_model_are_refused() -> None:
    model = nn.DataParallel(nn.Linear(2, 2))
    model.device_ids = [0, 1]  # as on a machine with two GPUs
    with pytest.raises(ValueError, match=r"KFAC cannot see into the copies .*: use DistributedDataParallel"):
        KFAC(model, lr=0.1, likelihood="gaussian")
