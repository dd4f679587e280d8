"""Where in a backward pass a gradient becomes exactly zero, NaN or Inf: the line of the call that made the node.

The idea: a hook on every node of autograd's graph compares what comes in with what goes out. A gradient is lost at the
node at which something else came in; from a parameter it is found by going back towards the loss, along edges on which
the gradient was lost already.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from frostline.probe.restore.bits import is_freed, local
from frostline.probe.trace.source_line import SourceLine

_PRODUCTS = {"MulBackward0", "MmBackward0", "MvBackward0", "BmmBackward0"}

Kind = Literal["zero", "not finite"]


@dataclass(frozen=True)
class Extent:
    """How large the entries of a tensor are.

    Attributes:
        zero: Whether all are zero; True for a tensor without entries.
        finite: Whether none is NaN or Inf.
        largest: The largest absolute value; NaN or Inf unless `finite`.
    """

    zero: bool
    finite: bool
    largest: float


def extent(tensor: Tensor) -> Extent:
    """Return the extent of a tensor: one look at each value, no copy. Of a DTensor that of its shard."""
    tensor = local(tensor)
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if not tensor.numel() or tensor.is_meta or is_freed(tensor):
        return Extent(True, True, 0.0)
    least, most = (float(extreme) for extreme in torch.aminmax(tensor))
    largest = max(abs(least), abs(most)) if least == least else least
    return Extent(largest == 0, abs(largest) < float("inf"), largest)


class Vanishing:
    """Watches a backward pass.

    Args:
        nodes: Every node of the graph.
        made: The sequence number of the last node that a call made, and its line, for each call; empty if unknown.
        start: The sequence number from which on nodes belong to the pass.
    """

    def __init__(self, nodes: Iterable[Any], made: Sequence[tuple[int, SourceLine | None]], start: int) -> None:
        self._made, self._start = sorted(made, key=lambda call: call[0]), start
        self._above: dict[Any, list[tuple[Any, int]]] = {}  # node -> the edges by which a gradient comes to it
        self._lost: dict[tuple[Any, int], tuple[Kind, bool]] = {}  # edge -> what was lost, and whether at this node
        self._leaves: dict[int, Any] = {}  # id of a leaf -> its node
        self._handles = []
        for node in nodes:
            for index, (following, _) in enumerate(node.next_functions):
                if following is not None:
                    self._above.setdefault(following, []).append((node, index))
            if hasattr(node, "variable"):
                self._leaves[id(node.variable)] = node
            elif node._sequence_nr() >= start:
                self._handles.append(node.register_hook(self._comparing(node)))

    def stop(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def lines(self, leaf: Tensor, kind: Kind) -> list[SourceLine]:
        """Return the lines at which the gradient of a leaf became zero or not finite, nearest to the loss first."""
        found: dict[int, SourceLine] = {}
        waiting = [self._leaves[id(leaf)]] if id(leaf) in self._leaves else []
        done = set(waiting)
        while waiting:
            for node, index in self._above.get(waiting.pop(), ()):
                lost, here = self._lost.get((node, index), ("", False))
                if lost != kind:
                    continue
                if here:
                    line = self._line(node)
                    if line is not None:
                        found[line.order] = line
                elif node not in done:
                    done.add(node)
                    waiting.append(node)
        return [found[order] for order in sorted(found, reverse=True)]

    def is_behind_zero(self, leaf: Tensor, learning: Container[int]) -> bool:
        """Return whether the gradient of a leaf is zero as a factor of it, another leaf that learns, is all zeros.

        Args:
            leaf: The leaf.
            learning: The `id` of each leaf that has a nonzero gradient.
        """
        waiting = [self._leaves[id(leaf)]] if id(leaf) in self._leaves else []
        done = set(waiting)
        while waiting:
            for node, index in self._above.get(waiting.pop(), ()):
                kind, here = self._lost.get((node, index), ("", False))
                if kind == "zero" and here:
                    others = [other for at, (other, _) in enumerate(node.next_functions) if at != index]
                    if any(_is_zero(other, learning) for other in others):
                        return True
                elif kind == "zero" and node not in done:
                    done.add(node)
                    waiting.append(node)
        return False

    def _line(self, node: Any) -> SourceLine | None:
        index = bisect.bisect_left(self._made, node._sequence_nr(), key=lambda call: call[0])
        return self._made[index][1] if index < len(self._made) else None

    def _comparing(self, node: Any) -> Callable[[Any, Any], None]:
        def compare(outgoing: Sequence[Tensor | None], incoming: Sequence[Tensor | None]) -> None:
            lost: dict[int, Kind] = {}
            for index, gradient in enumerate(outgoing):
                if gradient is not None and gradient.numel():
                    size = extent(gradient)
                    if size.zero or not size.finite:
                        lost[index] = "zero" if size.zero else "not finite"
            if lost:
                came = [extent(gradient) for gradient in incoming if gradient is not None]
                zero, finite = all(size.zero for size in came), all(size.finite for size in came)
                for index, kind in lost.items():
                    self._lost[node, index] = kind, (not zero if kind == "zero" else finite)

        return compare


def _is_zero(node: Any, learning: Container[int]) -> bool:
    """Return whether what comes to a node is all zeros as a leaf that learns is: cast, transposed, or multiplied."""
    while node is not None and not hasattr(node, "variable"):
        following = [each for each, _ in node.next_functions]
        if node.name() in _PRODUCTS:
            return any(_is_zero(each, learning) for each in following)
        node = following[0] if len(following) == 1 else None
    return node is not None and id(node.variable) in learning and extent(node.variable).zero
