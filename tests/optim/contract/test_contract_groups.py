"""What every registered optimizer makes of hyperparameters of its groups that are changed on the way."""

from __future__ import annotations

import inspect

import pytest
import torch

from kftune.optim import OPTIMIZERS
from tests.optim._contract import build, network, parameters, train
from tests.optim._dense import make_batch

SELDOM = {"inverses_every": 100, "statistics_every": 1, "scalings_every": 100, "warmup_updates": 0}
ONE_STEP = {"momentum": 0.0, "kl_clip": None, "lr": 0.0, "cg_iterations": 500, "cg_tolerance": 1e-14}


def options(entry):
    arguments = inspect.signature(entry.cls).parameters
    return {k: v for k, v in (entry.deterministic | SELDOM | ONE_STEP).items() if k in arguments}


def with_damping():
    """Whose groups have a damping that nothing but the preconditioner uses."""
    found = [entry for entry in OPTIMIZERS if "alpha" not in entry.readings]
    return [e for e in found if "damping" in build(e, network(), **options(e)).param_groups[0]]


def step_taken(entry, dampings):
    """The third update, after two of length 0, with the damping of each."""
    model = network()
    optimizer = build(entry, model, **options(entry))
    before = parameters(model)
    for step, damping in enumerate(dampings):
        optimizer.param_groups[0].update(damping=damping, lr=0.1 if step == 2 else 0.0)
        train(optimizer, model, 1, first=step)
    return torch.cat([(a - b).flatten() for a, b in zip(parameters(model), before, strict=True)])


@pytest.mark.parametrize("entry", with_damping(), ids=lambda entry: entry.name)
def test_a_changed_damping_counts_as_a_whole(entry):
    """At once or from the next inversion on, but not a little of each."""
    old, new = 1.0, 0.01
    changed = step_taken(entry, [old, old, new])
    whole = [step_taken(entry, [damping] * 3) for damping in (old, new)]
    errors = [((changed - step).norm() / step.norm()).item() for step in whole]
    assert min(errors) < 1e-8, errors


def grouped(entry, **second):
    """An optimizer whose second layer has a group of its own."""
    model = network()
    optimizer = build(entry, model)
    (group,) = optimizer.param_groups
    own = {k: v for k, v in group.items() if k not in ("params", "param_names")}
    params, names = group["params"], group["param_names"]
    group["params"], group["param_names"] = params[:2], names[:2]
    optimizer.param_groups.append(own | {"params": params[2:], "param_names": names[2:]} | second)
    return model, optimizer


@pytest.mark.parametrize("entry", list(OPTIMIZERS), ids=lambda entry: entry.name)
def test_groups_have_learning_rates_of_their_own_or_are_refused(entry):
    model, optimizer = grouped(entry, lr=0.0)
    before = parameters(model)
    if "alpha" in entry.readings:
        with pytest.raises(ValueError, match=r"rescale takes one parameter group.*got 2 groups"):
            train(optimizer, model, 1)
        with pytest.raises(ValueError, match=r"rescale takes one parameter group.*got 2 groups"):
            build(entry, network()).add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})
        assert all(torch.equal(a, b) for a, b in zip(parameters(model), before, strict=True))
        return
    train(optimizer, model, 3)
    stayed = [torch.equal(a, b) for a, b in zip(parameters(model), before, strict=True)]
    assert stayed == [False, False, True, True]


@pytest.mark.parametrize("entry", list(OPTIMIZERS), ids=lambda entry: entry.name)
def test_parameters_of_an_added_group_move_as_coverage_says(entry):
    torch.manual_seed(0)
    body, head = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh()).double(), torch.nn.Linear(8, 3).double()
    optimizer = build(entry, body)
    group = {"params": [(f"head.{name}", p) for name, p in head.named_parameters()]}
    if "alpha" in entry.readings:
        with pytest.raises(ValueError, match="rescale takes one parameter group"):
            optimizer.add_param_group(group)
        return
    optimizer.add_param_group(group)
    before = parameters(head)

    def closure():
        output = head(body(x))
        return torch.nn.functional.cross_entropy(output, y), output

    x, y = make_batch("categorical", 24, 6, 3)
    losses = [optimizer.step(closure).item() for _ in range(40)]
    assert losses[-1] < 0.9 * losses[0]
    assert not any(map(torch.equal, parameters(head), before))
    said = optimizer.coverage()
    assert set(said) == {"0.weight", "0.bias", "head.weight", "head.bias"}
    state = optimizer.state_dict()
    kept = dict(zip(state["param_groups"][1]["param_names"], state["param_groups"][1]["params"], strict=True))
    rule = {"SOAP": "left_basis", "Shampoo": "left_root", "AdamW": "exp_avg", "SGD": "momentum_buffer"}
    key = next((key for name, key in rule.items() if said["head.weight"].startswith(name)), None)
    assert key is None or key in state["state"][kept["head.weight"]]


@pytest.mark.parametrize("entry", [e for e in OPTIMIZERS if "max_dimension" in inspect.signature(e.cls).parameters])
def test_a_matrix_of_an_added_group_is_one_from_the_start(entry):
    """The update of one group over both layers."""
    found = []
    for added in (False, True):
        model = network()
        optimizer = build(entry, torch.nn.Sequential(model[0]) if added else model)
        if added:
            optimizer.add_param_group({"params": [(f"2.{name}", p) for name, p in model[2].named_parameters()]})
        train(optimizer, model, 6)
        found.append(parameters(model))
    assert all(map(torch.equal, *found))
