"""What a closure returned, against what it must: (loss, output)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

_WANTED = "it must be (loss, output): the mean loss of the examples, and the model's output for them, as one tensor"


def checked(
    closure: Callable[[], Any], likelihood: str | None, watched: Sequence[Tensor]
) -> Callable[[], tuple[Tensor, Tensor]]:
    """The closure, which raises where it breaks its contract.

    Args:
        closure: of one micro-batch.
        likelihood: the model's predictive distribution; None if that is not known.
        watched: parameters whose ``.grad`` it must leave alone.

    Returns:
        A function that returns (mean loss, output), or raises TypeError or ValueError and says in a line what the
        closure gave and what is wanted.
    """

    def run() -> tuple[Tensor, Tensor]:
        before = [(p.grad, _version(p.grad)) for p in watched]
        result = closure()
        after = [(p.grad, _version(p.grad)) for p in watched]
        if any(_was_changed(*both) for both in zip(before, after, strict=True)):
            raise ValueError(
                "the closure changed .grad: it must neither call backward() nor zero_grad(), which accumulate() and "
                "step() do; return (loss, output) instead"
            )
        return check_result(result, likelihood)

    return run


def _version(gradient: Tensor | None) -> int:
    return 0 if gradient is None else gradient._version


def _was_changed(before: tuple[Tensor | None, int], after: tuple[Tensor | None, int]) -> bool:
    (old, _), (new, _) = before, after
    # DistributedDataParallel may put another tensor with the same values in a gradient's place.
    return (old is None) != (new is None) or (old is new and before[1] != after[1])


def check_result(result: Any, likelihood: str | None) -> tuple[Tensor, Tensor]:
    """(loss, output) of what a closure returned.

    Raises:
        TypeError: it is not two tensors of floating-point numbers.
        ValueError: they have not the shapes, or the graph, of a mean loss and an output.
    """
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise TypeError(f"the closure returned {_describe(result)}; {_WANTED}")
    loss, output = result
    if not isinstance(loss, Tensor):
        raise TypeError(f"the closure returned {_describe(loss)} as its loss; {_WANTED}")
    if not isinstance(output, Tensor):
        raise TypeError(f"the closure returned {_describe(output)} as its output; {_WANTED}")
    if not loss.is_floating_point():
        raise TypeError(f"the closure returned a loss of {loss.dtype}; {_WANTED}")
    if not (output.is_floating_point() or output.is_complex()):
        raise TypeError(f"the closure returned an output of {output.dtype}; {_WANTED} (logits, not labels)")
    _check_shapes(loss, output, likelihood)
    if not loss.requires_grad:
        raise ValueError(
            "the closure returned a loss without a graph: it must depend on parameters that require gradients, and be "
            "computed with gradients enabled (no torch.no_grad(), .item() or .detach())"
        )
    return loss, output


def _check_shapes(loss: Tensor, output: Tensor, likelihood: str | None) -> None:
    shape = tuple(output.shape)
    if loss.numel() != 1 and output.ndim == 0:
        raise ValueError(f"the closure returned {_describe(loss)} and then a single number: swap them; {_WANTED}")
    if output.ndim == 0:
        raise ValueError(
            "the closure returned a single number as its output, which must have the examples in its first dimension: "
            "give one example with a dimension of its own (x[None]), and squeeze(-1) rather than squeeze()"
        )
    if len(output) == 0:
        raise ValueError(f"the closure returned an output of no examples, {shape}: its batch is empty")
    if likelihood == "categorical" and output.ndim < 2:
        raise ValueError(
            f"likelihood 'categorical' takes the output's last dimension for classes and its first for examples, and "
            f"was given {shape}: give one example with a dimension of its own (x[None]), and for one logit of each "
            "example say 'bernoulli'"
        )
    if loss.numel() != 1:
        raise ValueError(
            f"the closure returned a loss of the shape {tuple(loss.shape)}: it must be one number, the mean over the "
            "examples (reduction='mean')"
        )


def _describe(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"a tensor of the shape {tuple(found.shape)}"
    if isinstance(found, tuple | list | dict):
        members = found.values() if isinstance(found, dict) else found
        kinds = ", ".join(dict.fromkeys(type(member).__name__ for member in members))
        return f"a {type(found).__name__} of {len(found)}" + (f" ({kinds})" if kinds else "")
    return "None" if found is None else f"an object of {type(found).__name__}"
