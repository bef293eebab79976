"""Optimizers that no registry knows: torch's behind kftune's interface, classes and functions of anyone's."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace

import pytest
import torch
from torch import nn

from kftune.errors import UsageError
from kftune.optim import KFAC, OPTIMIZERS, SGD, ModelOptimizer, TargetEntry, TorchOptimizer
from kftune.optim.own.target import optimizer_from
from tests.optim._contract import build, network, parameters, train
from tests.optim._dense import make_batch, make_closure, make_net
from tests.optim.contract import test_contract as contract
from tests.optim.contract import test_contract_copies as copies_contract
from tests.optim.contract import test_contract_loading as loading_contract
from tests.optim.contract import test_contract_state as state_contract


class Signs(ModelOptimizer):
    """Steps of one size; neither likelihood nor seed are arguments."""

    def __init__(self, model, *, lr=0.01):
        super().__init__(model, {"lr": lr})

    def _update(self):
        with self.phases.phase("update"):
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.sub_(p.grad.sign(), alpha=group["lr"])

    def coverage(self):
        return self._coverage("sign")


class Heavier(torch.optim.SGD):
    """Passes on what it does not name."""

    def __init__(self, params, weight: float = 1.0, **others):
        super().__init__(params, momentum=0.5, **others)
        self.weight = weight


def muon_and_adamw(model: nn.Module, lr: float = 0.02, adamw_lr: float = 1e-2):
    """Two optimizers in one, from the model."""
    both = torch.optim.AdamW([p for p in model.parameters() if p.ndim < 2], lr=adamw_lr)
    both.add_param_group({"params": [p for p in model.parameters() if p.ndim >= 2], "lr": lr})
    return both


def weights_only(params, lr: float = 0.1):
    return torch.optim.SGD([p for p in params if p.ndim == 2], lr=lr)


def anything(model, likelihood, **others):
    return KFAC(model, likelihood=likelihood, **others)


def entry_of(found, **example):
    return replace(optimizer_from(f"{found.__module__}:{found.__name__}", found), example=example)


ENTRIES = {
    "SGD": entry_of(torch.optim.SGD, lr=0.1, momentum=0.9),
    "RMSprop": entry_of(torch.optim.RMSprop, lr=0.01),
    "Adam": entry_of(torch.optim.Adam, lr=0.02, beta1=0.8),
    "NAdam": entry_of(torch.optim.NAdam, lr=0.02),
    "Adagrad": entry_of(torch.optim.Adagrad, lr=0.1),
    "Signs": entry_of(Signs, lr=0.01),
    "model function": entry_of(muon_and_adamw),
    "subclass": entry_of(Heavier, lr=0.5),
}

# (test of a contract suite, its further arguments)
CONTRACT = [
    (contract.test_it_learns_a_small_problem, ("categorical", torch.float64)),
    (contract.test_it_learns_a_small_problem, ("bernoulli", torch.float32)),
    (contract.test_micro_batches_give_the_update_of_their_union, ((5, 19),)),
    (contract.test_coverage_names_every_parameter_and_frozen_ones_stay, ()),
    (contract.test_learning_rate_schedulers_work, ()),
    (contract.test_evaluation_between_updates_changes_nothing, ()),
    (contract.test_phases_are_reported, ()),
    (contract.test_the_loss_is_the_mean_over_all_examples, ()),
    (contract.test_stepping_from_nothing_is_an_error, ()),
    (state_contract.test_a_saved_and_loaded_optimizer_goes_on_bit_for_bit, (1,)),
    (state_contract.test_a_saved_and_loaded_optimizer_goes_on_bit_for_bit, (7,)),
    (state_contract.test_loading_leaves_the_callers_state_alone, ()),
    (state_contract.test_half_an_update_cannot_be_saved, ()),
    (state_contract.test_foreign_states_are_refused, ()),
    (loading_contract.test_the_state_of_another_models_layers_is_refused_by_name, (copy.deepcopy,)),
    (copies_contract.test_a_copy_goes_on_bit_for_bit_and_alone, (copy.deepcopy, 7)),
    (copies_contract.test_a_state_dict_is_a_snapshot, ()),
    (loading_contract.test_the_order_of_registration_does_not_count, ()),
    (loading_contract.test_states_without_names_are_taken_by_position, ()),
    (state_contract.test_what_is_not_finite_stops_before_the_parameters_change, ("loss",)),
    (state_contract.test_what_is_not_finite_stops_before_the_parameters_change, ("gradient",)),
    (state_contract.test_a_closure_that_raises_leaves_nothing_behind, ()),
    (state_contract.test_a_dropped_optimizer_leaves_no_hooks, ()),
    (state_contract.test_tensors_do_not_pile_up, ()),
]


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize(("test", "arguments"), CONTRACT, ids=[test.__name__ for test, _ in CONTRACT])
def test_it_keeps_the_contract_of_registered_optimizers(name, test, arguments):
    test(ENTRIES[name], *arguments)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("SGD", lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)),
        ("RMSprop", lambda params: torch.optim.RMSprop(params, lr=0.01)),
        ("Adam", lambda params: torch.optim.Adam(params, lr=0.02, betas=(0.8, 0.999))),
        ("Adagrad", lambda params: torch.optim.Adagrad(params, lr=0.1)),
    ],
)
def test_its_updates_are_torchs_bit_for_bit(name, make):
    ours, theirs = network(), network()
    optimizer, reference = build(ENTRIES[name], ours), make(theirs.parameters())
    for step in range(6):
        x, y = make_batch("categorical", 24, 6, 3, seed=step)
        optimizer.step(make_closure(ours, x, y, "categorical"))
        reference.zero_grad()
        nn.functional.cross_entropy(theirs(x), y).backward()
        reference.step()
    for found, expected in zip(parameters(ours), parameters(theirs), strict=True):
        assert torch.equal(found, expected)


def test_torchs_sgd_is_the_registrys_bit_for_bit():
    entry = OPTIMIZERS.get("torch.optim:SGD")
    for nesterov in (True, False):
        ours, theirs = network(), network()
        common = {"lr": 0.2, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.0}
        adapted = entry.build(ours, likelihood="categorical", params=common | {"fused": True})
        assert train(adapted, ours, 10) == train(SGD(theirs, **common), theirs, 10)
        for found, expected in zip(parameters(ours), parameters(theirs), strict=True):
            assert torch.equal(found, expected)


def test_schedulers_and_groups_reach_the_wrapped_optimizer_after_loading_too():
    model = network()
    wrapped = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = TorchOptimizer(model, wrapped)
    optimizer.load_state_dict(optimizer.state_dict())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    train(optimizer, model, 1)
    scheduler.step()
    assert wrapped.param_groups[0]["lr"] == 0.05
    assert optimizer.param_groups is wrapped.param_groups
    assert optimizer.state is wrapped.state


def test_what_the_optimizer_leaves_out_is_said_and_its_gradients_do_not_add_up():
    model = network()
    optimizer = build(entry_of(weights_only, lr=0.0), model)
    assert optimizer.coverage() == {
        name: "SGD" if name.endswith("weight") else "not updated" for name, _ in model.named_parameters()
    }
    closure = make_closure(model, *make_batch("categorical", 24, 6, 3), "categorical")
    gradients = [(optimizer.step(closure), model[0].bias.grad.clone())[1] for _ in range(2)]
    assert torch.equal(*gradients)
    assert gradients[0].any()


def test_tuples_are_set_one_by_one_and_the_others_keep_their_defaults():
    entry = OPTIMIZERS.get("torch.optim:Rprop")
    assert isinstance(entry, TargetEntry)
    assert entry.joined == {"etas": ("eta1", "eta2"), "step_sizes": ("step_size1", "step_size2")}
    arguments = inspect.signature(entry.cls).parameters
    assert (arguments["eta1"].default, arguments["step_size2"].default) == (0.5, 50)
    built = entry.build(network(), likelihood="categorical", params={"eta2": 1.5})
    assert built.param_groups[0]["etas"] == (0.5, 1.5)
    assert built.param_groups[0]["step_sizes"] == (1e-6, 50)


def test_a_signature_includes_what_is_passed_on_to_the_base():
    arguments = inspect.signature(ENTRIES["subclass"].cls).parameters
    assert {"weight", "lr", "nesterov"} <= set(arguments)
    assert "params" not in arguments
    assert not entry_of(Heavier).accepts_any


def test_likelihood_and_seed_go_to_those_who_take_them():
    built = entry_of(anything).build(network(), likelihood="gaussian", seed=3, params={"lr": 0.3})
    assert isinstance(built, KFAC)
    assert built.param_groups[0]["lr"] == 0.3
    assert entry_of(anything).accepts_any
    assert isinstance(entry_of(Signs).build(network(), likelihood="gaussian", params={}), Signs)


class Unfinished(ModelOptimizer):
    def __init__(self, model):
        super().__init__(model, {})


def no_optimizer(lr):
    return lr


def returns_nothing(params):
    return None


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("torch.optim:LBFGS", "'torch.optim:LBFGS' cannot be used: LBFGS evaluates a closure inside its step"),
        ("torch.optim:Optimizer", "'torch.optim:Optimizer' is no optimizer; it must be a torch.optim.Optimizer class"),
        ("torch.nn:Linear", "'torch.nn:Linear' is no optimizer; it must be a torch.optim.Optimizer class, a kftune"),
        ("torch:pi", "'torch:pi' is a float; it must be a torch.optim.Optimizer class"),
        ("torch.optim:SDG", "'torch.optim' has no attribute 'SDG'; did you mean 'SGD'?"),
        ("torch.optim:SGD.stepp", "'torch.optim.SGD' has no attribute 'stepp'; did you mean 'step'?"),
        ("torch.optim:lr_scheduler", "'torch.optim:lr_scheduler' is a module; it must be a torch.optim.Optimizer"),
        ("torch.optin:SGD", "there is no module 'torch.optin' among the installed ones"),
        ("no_such_package_at_all:SGD", "there is no module 'no_such_package_at_all' among the installed ones"),
        ("torch.optim:", "target must look like package.module:Class, got 'torch.optim:'"),
        (f"{__name__}:no_optimizer", "is no function of params or model; it must be a torch.optim.Optimizer class"),
        (f"{__name__}:Unfinished", "does not implement _update and coverage of kftune.optim.ModelOptimizer"),
    ],
)
def test_what_cannot_be_used_is_refused(target, message):
    with pytest.raises(UsageError) as error:
        OPTIMIZERS.get(target)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_function_that_returns_no_optimizer_is_refused():
    with pytest.raises(ValueError, match="returns_nothing returned a NoneType, not an optimizer"):
        entry_of(returns_nothing).build(network(), likelihood="categorical", params={})


def test_an_optimizer_of_another_model_is_refused():
    foreign = torch.optim.SGD(make_net(4, 3).parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"optimizer \(SGD\) has parameters that are not the model's"):
        TorchOptimizer(network(), foreign)
    with pytest.raises(ValueError, match="LBFGS evaluates a closure inside its step"):
        TorchOptimizer(network(), torch.optim.LBFGS(network().parameters()))


def test_an_entry_is_taken_as_it_is():
    entry = OPTIMIZERS.get("sgd")
    assert optimizer_from("any:thing", entry) is entry
