"""What every registered optimizer says of a closure that breaks its contract, and that nothing is left of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kftune.optim import KFAC, SGD
from tests.optim._contract import build, every, network, parameters, train
from tests.optim._dense import make_batch, make_closure
from tests.optim.contract.test_contract_loading import same

WANTED = r"it must be \(loss, output\): the mean loss"


def went_backward(model, x, y):
    output = model(x)
    loss = cross_entropy(output, y)
    loss.backward(retain_graph=True)
    return loss, output


def as_in_torch(model, x, y):
    model.zero_grad()
    loss = cross_entropy(model(x), y)
    loss.backward()
    return loss


def swapped(model, x, y):
    output = model(x)
    return output, cross_entropy(output, y)


def returning(make):
    """A closure of ``make(loss, output)``."""

    def broken(model, x, y):
        output = model(x)
        return make(cross_entropy(output, y), output)

    return broken


class Output(dict):
    pass


BROKEN = {
    "two heads": (
        returning(lambda loss, output: (loss, (output, output))),
        TypeError,
        r"a tuple of 2 \(Tensor\) as its",
    ),
    "a dict": (returning(lambda loss, output: (loss, {"logits": output})), TypeError, r"a dict of 1 \(Tensor\) as its"),
    "an object": (returning(lambda loss, output: (loss, Output(a=1))), TypeError, r"a Output of 1 \(int\) as its"),
    "nothing": (returning(lambda loss, output: None), TypeError, "the closure returned None; " + WANTED),
    "a loss": (returning(lambda loss, output: loss), TypeError, r"tensor of the shape \(\); " + WANTED),
    "three": (returning(lambda loss, output: (loss, output, 1)), TypeError, r"a tuple of 3 \(Tensor, int\); " + WANTED),
    "a number": (returning(lambda loss, output: (loss.item(), output)), TypeError, "object of float as its loss"),
    "labels": (returning(lambda loss, output: (loss, output.argmax(1))), TypeError, "an output of torch.int64"),
    "detached": (returning(lambda loss, output: (loss.detach(), output)), ValueError, "a loss without a graph"),
    "swapped": (swapped, ValueError, r"a tensor of the shape \(24, 3\) and then a single number: swap them"),
    "unreduced": (
        lambda model, x, y: (cross_entropy(output := model(x), y, reduction="none"), output),
        ValueError,
        r"a loss of the shape \(24,\): it must be one number, the mean",
    ),
    "a scalar output": (
        returning(lambda loss, output: (loss, output.sum())),
        ValueError,
        "a single number as its output",
    ),
    "unbatched": (
        lambda model, x, y: (cross_entropy(output := model(x[0]), y[0]), output),
        ValueError,
        r"has no dimension of examples|was given \(3,\)",
    ),
    "empty": (
        lambda model, x, y: (cross_entropy(output := model(x[:0]), y[:0]), output),
        ValueError,
        r"an output of no examples, \(0, 3\): its batch is empty",
    ),
    "backward": (went_backward, ValueError, r"neither call backward\(\) nor zero_grad\(\)"),
    "as in torch": (as_in_torch, (TypeError, ValueError), rf"backward\(\) nor zero_grad\(\)|{WANTED}"),
}
broken_closures = pytest.mark.parametrize(("broken", "error", "message"), BROKEN.values(), ids=BROKEN)


@pytest.mark.product
@every
@broken_closures
@pytest.mark.parametrize("how", ["step", "accumulate", "second micro-batch"])
@pytest.mark.parametrize("done", [0, 3])
def test_a_broken_contract_is_said_in_a_line_and_leaves_no_trace(entry, broken, error, message, how, done):
    models = [network(), network()]
    disturbed, calm = (build(entry, model) for model in models)
    for model, optimizer in zip(models, (disturbed, calm), strict=True):
        train(optimizer, model, done)
    x, y = make_batch("categorical", 24, 6, 3, seed=50)
    before, state = parameters(models[0]), disturbed.state_dict()
    if how == "second micro-batch":
        disturbed.accumulate(make_closure(models[0], x, y, "categorical"))
    with pytest.raises(error, match=message) as caught:
        (disturbed.step if how == "step" else disturbed.accumulate)(lambda: broken(models[0], x, y))
    assert "\n" not in str(caught.value)
    assert all(map(torch.equal, parameters(models[0]), before))
    assert same(disturbed.state_dict(), state)
    with pytest.raises(RuntimeError, match="nothing to step from"):
        disturbed.step()
    assert train(disturbed, models[0], 4, first=10) == train(calm, models[1], 4, first=10)
    assert all(map(torch.equal, *map(parameters, models)))


@pytest.mark.parametrize("make", [SGD, KFAC])
def test_a_list_of_two_and_a_loss_in_a_dimension_of_its_own_will_do(make):
    models = [network(), network()]
    for model, form in zip(models, (tuple, list), strict=True):
        optimizer = make(model, likelihood="categorical")
        x, y = make_batch("categorical", 24, 6, 3)

        def closure(model=model, form=form, x=x, y=y):
            output = model(x)
            loss = cross_entropy(output, y)
            return form((loss if form is tuple else loss[None], output))

        optimizer.step(closure)
    assert all(map(torch.equal, *map(parameters, models)))


def test_curvature_of_an_output_without_a_graph_is_refused():
    model = network()
    with pytest.raises(ValueError, match="an output without a graph"):
        KFAC(model, likelihood="categorical").step(
            lambda: returning(lambda loss, output: (loss, output.detach()))(model, *make_batch("categorical", 24, 6, 3))
        )


def test_images_without_a_dimension_of_examples_are_refused_by_their_layer():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(0), nn.Linear(8, 3)).double()
    x = torch.randn(1, 4, 4, dtype=torch.float64)

    def closure():
        output = model(x)
        return output.square().mean(), output

    with pytest.raises(
        ValueError, match=r"layer '0' was given an input of the shape \(1, 4, 4\), which has no dimension"
    ):
        KFAC(model, likelihood="gaussian").step(closure)
