"""What every registered optimizer makes of hooks that users attach to modules, parameters and steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from tests.optim._contract import build, every, parameters
from tests.optim._dense import DTYPE, make_batch, make_closure, make_net

sizes = pytest.mark.parametrize("n", [4, 60])  # gradients of the smaller one may stay in two factors


def net():
    return make_net(20, 24, 3, seed=1)


def batches(n, steps=3):
    return [make_batch("categorical", n, 20, 3, seed=step) for step in range(steps)]


class Tripled(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 3.0 * self.inner(x)


def triple(module, args, output):
    return 3.0 * output


HOOKS = {
    "hook": lambda first: first.register_forward_hook(triple),
    "prepended": lambda first: first.register_forward_hook(triple, prepend=True),
    "of all modules": lambda first: register_module_forward_hook(
        lambda module, args, output: 3.0 * output if module is first else None
    ),
}


def moved(entry, n, hook=None, *, before=True, wrapped=False):
    model = net()
    first = model[0]
    if wrapped:
        model[0] = Tripled(first)
    start = parameters(model)
    handle = hook(first) if hook is not None and before else None
    optimizer = build(entry, model, **entry.deterministic)
    handle = hook(first) if hook is not None and not before else handle
    try:
        for batch in batches(n):
            optimizer.step(make_closure(model, *batch, "categorical"))
    finally:
        if handle is not None:
            handle.remove()
    return [a - b for a, b in zip(parameters(model), start, strict=True)]


@pytest.mark.product
@every
@sizes
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_a_hook_that_changes_a_layers_output_is_a_module_round_it(entry, hook, before, n):
    for found, expected in zip(moved(entry, n, hook, before=before), moved(entry, n, wrapped=True), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def masked(gradient):
    return gradient * torch.linspace(-1, 2, gradient.numel(), dtype=DTYPE).view_as(gradient)


def mask_after_accumulation(parameter):
    parameter.grad.copy_(masked(parameter.grad))


GRADIENT_HOOKS = {
    "tensor": lambda p: p.register_hook(masked),
    "accumulated": lambda p: p.register_post_accumulate_grad_hook(mask_after_accumulation),
}


@pytest.mark.product
@every
@sizes
@pytest.mark.parametrize("name", ["0.weight", "0.bias", "2.weight"])
@pytest.mark.parametrize("hook", GRADIENT_HOOKS.values(), ids=GRADIENT_HOOKS)
def test_a_hook_on_a_gradient_changes_the_gradient(entry, hook, name, n):
    """As whoever changes ``.grad`` between accumulate() and step()."""
    models = [net(), net()]
    hooked, by_hand = (build(entry, model, **entry.deterministic) for model in models)
    hook(models[0].get_parameter(name))
    for batch in batches(n):
        hooked.step(make_closure(models[0], *batch, "categorical"))
        by_hand.accumulate(make_closure(models[1], *batch, "categorical"))
        mask_after_accumulation(models[1].get_parameter(name))
        by_hand.step()
    for found, expected in zip(*map(parameters, models), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


MODULE_HOOKS = {
    "full backward": lambda m: m.register_full_backward_hook(lambda module, into, out: (into[0] * 3,)),
    "full backward pre": lambda m: m.register_full_backward_pre_hook(lambda module, out: (out[0] * 3,)),
    "forward pre": lambda m: m.register_forward_pre_hook(lambda module, args: (args[0] * 3,)),
}


@pytest.mark.product
@every
@sizes
@pytest.mark.parametrize("hook", MODULE_HOOKS.values(), ids=MODULE_HOOKS)
def test_hooks_of_modules_act_however_an_update_is_made(entry, hook, n):
    found = []
    for in_one in (True, False):
        model = net()
        hook(model[2])
        optimizer = build(entry, model, **entry.deterministic)
        for batch in batches(n):
            closure = make_closure(model, *batch, "categorical")
            if in_one:
                optimizer.step(closure)
            else:
                optimizer.accumulate(closure)
                optimizer.step()
        found.append(parameters(model))
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-9)


@every
def test_other_leaves_of_the_graph_get_their_gradients(entry):
    """A learned input, say, that another optimizer moves."""
    model = net()
    optimizer = build(entry, model)
    x, y = batches(4, steps=1)[0]
    x.requires_grad_()
    (expected,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), x)
    optimizer.step(make_closure(model, x, y, "categorical"))
    torch.testing.assert_close(x.grad, expected)


REGISTER = {
    "own": lambda optimizer, before, after: (
        optimizer.register_step_pre_hook(before),
        optimizer.register_step_post_hook(after),
    ),
    "of all optimizers": lambda optimizer, before, after: (
        register_optimizer_step_pre_hook(before),
        register_optimizer_step_post_hook(after),
    ),
}


@every
@pytest.mark.parametrize("in_one", [True, False])
@pytest.mark.parametrize("register", REGISTER.values(), ids=REGISTER)
def test_hooks_of_steps_see_the_gradient_of_the_update(entry, register, in_one):
    model = net()
    optimizer = build(entry, model, **entry.deterministic)
    seen = {"before": [], "after": []}
    handles = register(
        optimizer,
        lambda own, args, kwargs: seen["before"].append([p.grad.clone() for p in model.parameters()]),
        lambda own, args, kwargs: seen["after"].append([p.grad.clone() for p in model.parameters()]),
    )
    expected = []
    try:
        for x, y in batches(4):
            expected.append(torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters())))
            closure = make_closure(model, x, y, "categorical")
            if in_one:
                optimizer.step(closure)
            else:
                optimizer.accumulate(closure)
                optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    for found in seen.values():
        assert len(found) == len(expected)
        for gradients, own in zip(found, expected, strict=True):
            for a, b in zip(gradients, own, strict=True):
                torch.testing.assert_close(a, b)


@every
def test_a_hook_before_the_step_may_change_the_gradient(entry):
    models = [net(), net()]
    hooked, by_hand = (build(entry, model, **entry.deterministic) for model in models)
    hooked.register_step_pre_hook(lambda own, args, kwargs: mask_after_accumulation(models[0][0].weight))
    for batch in batches(4):
        hooked.step(make_closure(models[0], *batch, "categorical"))
        by_hand.accumulate(make_closure(models[1], *batch, "categorical"))
        mask_after_accumulation(models[1][0].weight)
        by_hand.step()
    for found, expected in zip(*map(parameters, models), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@every
def test_a_hook_before_the_step_that_fails_leaves_the_optimizer_as_it_was(entry):
    models = [net(), net()]
    disturbed, calm = (build(entry, model) for model in models)

    def failing(own, args, kwargs):
        raise MemoryError

    handle = disturbed.register_step_pre_hook(failing)
    with pytest.raises(MemoryError):
        disturbed.step(make_closure(models[0], *batches(4)[2], "categorical"))
    handle.remove()
    exchanging = disturbed.register_step_pre_hook(lambda own, args, kwargs: (args, kwargs))
    with pytest.raises(RuntimeError, match="cannot exchange the closure"):
        disturbed.step(make_closure(models[0], *batches(4)[2], "categorical"))
    exchanging.remove()
    for batch in batches(4):
        for optimizer, model in ((disturbed, models[0]), (calm, models[1])):
            optimizer.step(make_closure(model, *batch, "categorical"))
    assert all(map(torch.equal, *map(parameters, models)))
