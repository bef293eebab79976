"""The rows ā and g of every layer of a small model, by hooks and torch's own unfold."""

from __future__ import annotations

import torch
from torch import nn

from tests.optim._dense import DTYPE


def passed(model, x, likelihood):
    """Module → (input, [gradient by the output of Σ_n of example n's loss, for every column of the Fisher])."""
    inputs, outputs = {}, {}

    def see(name):
        def hook(module, args, output):
            inputs[name], outputs[name] = args[0].detach(), output

        return hook

    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    handles = [m.register_forward_hook(see(n)) for n, m in layers.items()]
    output = model(x)
    for handle in handles:
        handle.remove()
    assert output.dim() == 2
    if likelihood == "gaussian":
        roots = [
            (2 / output.shape[1]) ** 0.5 * torch.eye(output.shape[1], dtype=DTYPE)[o] for o in range(len(output[0]))
        ]
        columns = [root.expand_as(output) for root in roots]
    else:
        p = torch.softmax(output.detach(), dim=1)
        columns = [p[:, [c]].sqrt() * (p - torch.eye(p.shape[1], dtype=DTYPE)[c]) for c in range(p.shape[1])]
    gradients = [torch.autograd.grad(output, list(outputs.values()), v, retain_graph=True) for v in columns]
    return {name: (inputs[name], [g[i] for g in gradients]) for i, name in enumerate(outputs)}


def dense_rows(model, x, likelihood):
    """Layer (group) → (ā (N, T, d_A), g (C, N, T, d_G)), by torch's own unfold."""
    rows = {}
    for name, (a, gs) in passed(model, x, likelihood).items():
        module = model.get_submodule(name)
        if isinstance(module, nn.Linear):
            parts = [
                (a.flatten(1, -2) if a.dim() > 2 else a[:, None], [g.reshape(len(a), -1, g.shape[-1]) for g in gs])
            ]
        else:
            settings = {key: getattr(module, key) for key in ("kernel_size", "stride", "padding", "dilation")}
            channels = a.chunk(module.groups, dim=1)
            unfolded = [nn.functional.unfold(part, **settings).transpose(1, 2) for part in channels]
            split = zip(*[g.flatten(2).transpose(1, 2).chunk(module.groups, dim=2) for g in gs], strict=True)
            parts = list(zip(unfolded, split, strict=True))
        for j, (own, g) in enumerate(parts):
            ones = [torch.ones_like(own[..., :1])] if module.bias is not None else []
            key = name if len(parts) == 1 else f"{name}[{j}]"
            rows[key] = torch.cat([own, *ones], dim=2), torch.stack(list(g))
    return rows
