"""Questions about autograd's graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor
from torch.autograd.graph import Node


def parameters_reached(roots: Iterable[Node], *, without: Iterable[Node]) -> set[Tensor]:
    """The leaves to which the graph leads back from ``roots`` if the nodes of ``without`` are taken out."""
    # Only the node in which a leaf's gradient is accumulated has a ``variable``.
    found = (getattr(node, "variable", None) for node in _nodes(roots, without))
    return {leaf for leaf in found if leaf is not None}


def connected(start: Node, goal: Node, *, without: Node) -> bool:
    """Whether the graph leads back from ``start`` to ``goal`` if ``without`` is taken out."""
    return any(node is goal for node in _nodes([start], [without]))


def _nodes(roots: Iterable[Node], without: Iterable[Node]) -> Iterator[Node]:
    seen = set(without)
    left = [node for node in roots if node not in seen]
    while left:
        node = left.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        left.extend(following for following, _ in node.next_functions if following is not None)
