"""Measuring a model on a split, chunk by chunk, without a trace in the run's random numbers."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kftune.problems import Problem, Split

__all__ = ["measure", "random_state_kept"]

_CHUNK = 2048


@contextlib.contextmanager
def random_state_kept(device: torch.device, model: nn.Module | None = None) -> Iterator[None]:
    """Whatever is drawn inside the block, afterwards random numbers come as if it had not been.

    Those of torch (on the CPU and on ``device``), NumPy and Python, and of generators that are attributes of a module.

    Args:
        device: the run's.
        model: whose modules may have generators of their own.
    """
    on_gpu = device.type == "cuda"
    state = torch.get_rng_state(), torch.cuda.get_rng_state(device) if on_gpu else None
    others = np.random.get_state(), random.getstate()
    own = [(generator, generator.get_state()) for generator in _generators(model)]
    try:
        yield
    finally:
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], device)
        np.random.set_state(others[0])
        random.setstate(others[1])
        for generator, kept in own:
            generator.set_state(kept)


def _generators(model: nn.Module | None) -> Iterator[torch.Generator]:
    for module in model.modules() if model is not None else ():
        yield from (found for found in vars(module).values() if isinstance(found, torch.Generator))


@torch.no_grad()
def measure(
    model: nn.Module, problem: Problem, split: Split, *, dtype: torch.dtype, micro_batch: int | None = None
) -> tuple[float, float | None]:
    """Loss and accuracy of a model, in its current mode, over all examples of a split.

    The loss is a mean over examples, and so are its parts. An accuracy is taken of all outputs at once, unless it is
    declared to be such a mean too (:attr:`~kftune.problems.Problem.accuracy_is_mean`): F1 and the area under a curve
    are not. Outputs in a shorter floating-point type than ``dtype`` (of a model that computes under autocast) are
    measured in ``dtype``: the mean of losses in bfloat16 has two digits.

    Args:
        model: on the device of the split.
        problem: has the loss and the accuracy.
        split: what to measure on.
        dtype: of data and parameters.
        micro_batch: most examples in one forward pass; None for no other limit than that of this module.
    """
    device = split.inputs.device
    loss = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.float64, device=device)
    chunk = min(_CHUNK, micro_batch or _CHUNK)
    is_mean = problem.accuracy_is_mean or len(split) <= chunk
    outputs = []
    with torch.autocast(device.type, enabled=False):
        for start in range(0, len(split), chunk):
            inputs, targets = (t[start : start + chunk] for t in (split.inputs, split.targets))
            output = _each(lambda parts: _at_least(parts[0], dtype), [model(inputs)])
            loss += problem.loss(output, targets) * len(inputs)
            if problem.accuracy is not None and is_mean:
                correct += problem.accuracy(output, targets) * len(inputs)
            elif problem.accuracy is not None:
                outputs.append(output)
        if problem.accuracy is None:
            return float(loss) / len(split), None
        if is_mean:
            return float(loss) / len(split), float(correct) / len(split)
        return float(loss) / len(split), float(problem.accuracy(_each(torch.cat, outputs), split.targets))


def _at_least(output: Tensor, dtype: torch.dtype) -> Tensor:
    is_shorter = output.is_floating_point() and torch.finfo(output.dtype).eps > torch.finfo(dtype).eps
    return output.to(dtype) if is_shorter else output


def _each(function: Callable[[list[Tensor]], Tensor], parts: list[Any]) -> Any:
    """``function`` of the tensors that stand at the same place in every part."""
    first = parts[0]
    if isinstance(first, Tensor):
        return function(parts)
    if isinstance(first, Mapping):
        return {key: _each(function, [part[key] for part in parts]) for key in first}
    if isinstance(first, list | tuple):
        return tuple(_each(function, [part[i] for part in parts]) for i in range(len(first)))
    return first
