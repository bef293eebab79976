"""Hooks see a layer's input however it is given, and in a compiled model too."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from kftune.optim import KFAC, BlockTridiagonalKFAC
from tests.optim._dense import DTYPE, make_batch, make_closure, make_net

EVERY_UPDATE = {"fisher": "exact", "statistics_every": 1, "inverses_every": 1, "likelihood": "categorical"}


class ByKeyword(nn.Module):
    """Gives its layers their inputs by name, or not."""

    def __init__(self, by_keyword):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.by_keyword = by_keyword
        self.double()

    def forward(self, x):
        if self.by_keyword:
            return self.last(input=torch.tanh(self.first(input=x)))
        return self.last(torch.tanh(self.first(x)))


@pytest.mark.parametrize("optimizer", [KFAC, BlockTridiagonalKFAC])
def test_inputs_may_be_given_by_name(optimizer):
    models = [ByKeyword(by_keyword=False), ByKeyword(by_keyword=True)]
    for model in models:
        updates = optimizer(model, **EVERY_UPDATE)
        model(torch.zeros(1, 4, dtype=DTYPE))
        for seed in range(2):
            updates.step(make_closure(model, *make_batch("categorical", 9, 4, 3, seed=seed), "categorical"))
    for found, expected in zip(models[1].parameters(), models[0].parameters(), strict=True):
        assert torch.equal(found, expected)


class Table(nn.Module):
    """A frozen matrix that is given no input at all."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(4, dtype=DTYPE), requires_grad=False)

    def forward(self):
        return self.matrix


class Mapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.layers = Table(), make_net(4, 5, 3)

    def forward(self, x):
        return self.layers(x @ self.table())


def test_modules_without_an_input_are_no_hindrance():
    model = Mapped()
    x, y = make_batch("categorical", 9, 4, 3)
    before = copy.deepcopy(model.layers.state_dict())
    BlockTridiagonalKFAC(model, **EVERY_UPDATE).step(make_closure(model, x, y, "categorical"))
    assert all(not torch.equal(value, before[name]) for name, value in model.layers.state_dict().items())


class Chain(nn.Module):
    """Without a loop, so that all of it can be one graph."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.double()

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


def train(model, forward, n):
    """n updates, statistics in every third; yields after each."""
    settings = EVERY_UPDATE | {"statistics_every": 3, "inverses_every": 3, "warmup_updates": 0}
    optimizer = KFAC(model, **settings)
    for seed in range(n):
        x, y = make_batch("categorical", 9, 4, 3, seed=seed)

        def closure(x=x, y=y):
            output = forward(x)
            return nn.functional.cross_entropy(output, y), output

        optimizer.accumulate(closure)
        optimizer.step()
        yield


# dynamo looks at this attribute wherever a graph breaks, and hides the warning where warnings are no errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_model_compiled_after_the_optimizer_is_compiled_once_for_each_kind_of_update():
    torch._dynamo.reset()
    plain, model = Chain(), Chain()
    for _ in train(plain, plain, 9):
        pass
    compiled = torch.compile(model, backend="aot_eager")
    n_compiled = []
    for _ in train(model, compiled, 9):
        n_compiled.append(counters["frames"]["total"])
    assert len(set(n_compiled[4:])) == 1  # by then both kinds have been seen twice
    for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_compiled_model_in_which_nobody_looks_is_one_graph():
    torch._dynamo.reset()
    model = Chain()
    optimizer = KFAC(model, **EVERY_UPDATE)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    compiled(torch.zeros(2, 4, dtype=DTYPE))
    assert len(graphs) == 1
    assert optimizer.coverage()["first.weight"] == "Kronecker-factored"
