"""One forward and backward pass, watched: the gradient that each tensor got, and the trace of the forward.

It runs inside `restored`, which has set every `.grad` to None.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from torch import Tensor

from frostline.probe.autograd_graph import backward_nodes, next_sequence_number
from frostline.probe.explain.vanishing import Kind, Vanishing, extent
from frostline.probe.inputs import check_loss, own_backward
from frostline.probe.restore.bits import local
from frostline.probe.restore.restored import compile_stance
from frostline.probe.trace.provenance import Provenance
from frostline.probe.trace.source_line import SourceLine, run_pass
from frostline.probe.trace.trace import Trace


@dataclass(frozen=True)
class GradientStatus:
    """The gradient that a backward pass gave one tensor.

    Attributes:
        kind: No gradient, exact zeros, or anything else.
        not_finite: What holds NaN or Inf: "its gradient", "it" (the tensor) or "the loss"; empty if nothing does.
        rows: How many of its rows, (R, *), or entries, (n,), got a nonzero gradient.
        largest: The largest absolute value of the gradient.
    """

    kind: Literal["none", "zero", "nonzero"]
    not_finite: str
    rows: int = 0
    largest: float = 0.0

    def merged(self, other: GradientStatus) -> GradientStatus:
        """Return what both passes gave the tensor."""
        return GradientStatus(
            max(self.kind, other.kind, key=("none", "zero", "nonzero").index),
            self.not_finite or other.not_finite,
            max(self.rows, other.rows),
            max(self.largest, other.largest),
        )


class Watched(Protocol):
    """What one or several watched passes showed; indices are those of the tensors.

    Attributes:
        gradients: The GradientStatus of each tensor.
        trace: The trace of the forward.
        loss: The provenance of the loss.
        cuts: Index of a tensor -> the lines at which its gradient was lost.
        vanished: Index of a tensor -> the lines at which its gradient became exactly zero, NaN or Inf.
        spoilt: The lines of the forward that made a loss NaN or Inf.
    """

    gradients: list[GradientStatus]
    trace: Trace
    loss: Provenance
    cuts: dict[int, list[SourceLine]]
    vanished: dict[int, list[SourceLine]]
    spoilt: list[SourceLine]

    def reaches_loss(self, index: int) -> bool:
        """Return whether the value of a tensor reaches a loss."""


class WatchedPass:
    """A forward and backward pass, and what was seen of it.

    Args:
        tensors: Leaf tensors to watch.
        loss_fn: Runs the forward pass and returns the loss.
        partial: Indices of the tensors whose rows with a gradient are counted.
        note_calls: Note the line of every call of the forward.
        compiled: Whether compiled code may run, which must then run eagerly.

    Attributes:
        gradients: The GradientStatus of each tensor.
        trace: The trace of the forward.
        loss: The provenance of the loss.
        reaching_loss: Mask of the tensors whose value reaches the loss.
        cuts: Index of a tensor -> the lines at which its gradient was lost.
        vanished: Index of a tensor -> the lines at which its gradient became exactly zero, NaN or Inf.
        spoilt: The lines of the forward that made a loss NaN or Inf.
        other_leaves: Leaves that got a gradient and are not among the tensors.
        has_graph: Whether the loss requires a gradient at all.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        loss_fn: Callable[[], Tensor],
        partial: Container[int] = (),
        note_calls: bool = False,
        compiled: bool = True,
    ) -> None:
        start = next_sequence_number()
        eager = compile_stance("force_eager") if compiled else contextlib.nullcontext()
        with eager, Trace(tensors, note_calls) as self.trace:
            loss = run_pass(loss_fn)
        finite = is_finite_loss(loss)
        self.other_leaves: list[Tensor] = []
        self.has_graph = isinstance(loss, Tensor) and loss.grad_fn is not None
        hooked: dict[int, Tensor] = {}
        self._vanishing: Vanishing | None = None
        with contextlib.ExitStack() as stack:
            if self.has_graph:
                self._backward(loss, tensors, start, hooked, stack)
            self.gradients: list[GradientStatus] = [
                status_of(tensor, tensor.grad if tensor.grad is not None else hooked.get(id(tensor)), index in partial)
                for index, tensor in enumerate(tensors)
            ]
        if not finite:
            self.gradients = [
                status if status.not_finite or status.kind == "none" else replace(status, not_finite="the loss")
                for status in self.gradients
            ]
        missing = sum(1 << index for index, status in enumerate(self.gradients) if status.kind == "none")
        self.vanished: dict[int, list[SourceLine]] = {}
        self.spoilt = self.trace.nodes.where_not_finite([loss.grad_fn]) if self.has_graph and not finite else []
        for index, status in enumerate(self.gradients):
            if status.kind == "zero" or status.not_finite == "its gradient":
                kind: Kind = "zero" if status.kind == "zero" else "not finite"
                self.vanished[index] = self._vanishing.lines(tensors[index], kind) if self._vanishing else []
        self._vanishing = None  # it holds the graph
        self.loss = self.trace.provenance(loss)
        self.reaching_loss = self.loss.value
        self.cuts: dict[int, list[SourceLine]] = self.trace.cuts(loss, missing)

    def reaches_loss(self, index: int) -> bool:
        """Return whether the value of a tensor reaches the loss."""
        return bool(self.reaching_loss >> index & 1)

    def _backward(
        self,
        loss: Tensor,
        tensors: Sequence[Tensor],
        start: int,
        hooked: dict[int, Tensor],
        stack: contextlib.ExitStack,
    ) -> None:
        known = {id(tensor) for tensor in tensors}
        nodes = list(backward_nodes(loss.grad_fn))
        for node in nodes:
            leaf = getattr(node, "variable", None)
            if leaf is None:
                continue
            if id(leaf) not in known:
                self.other_leaves.append(leaf)
                stack.enter_context(_gradient_restored(leaf))
            if leaf._post_accumulate_grad_hooks:  # an optimizer in the backward pass may take `.grad` away
                stack.callback(node.register_prehook(_copying_gradient(hooked, leaf)).remove)
        if self.trace.nodes.single_thread:
            self._vanishing = Vanishing(nodes, self.trace.nodes.made, start)
            stack.callback(self._vanishing.stop)
        # Nodes older than this pass belong to a graph of the user's, who may still call backward on it.
        with own_backward():
            loss.backward(retain_graph=any(node._sequence_nr() < start for node in nodes))


def status_of(tensor: Tensor, gradient: Tensor | None, count_rows: bool) -> GradientStatus:
    """Return the status of a tensor with this gradient; `count_rows` whether its rows are counted."""
    not_finite = "" if not tensor.requires_grad or extent(tensor).finite else "it"
    if gradient is None:
        return GradientStatus("none", not_finite)
    size = extent(gradient)
    return GradientStatus(
        # A tensor without elements, such as an empty shard, has the gradient it should have.
        "zero" if size.zero and local(tensor).numel() else "nonzero",
        not_finite if size.finite else "its gradient",
        _count_nonzero_rows(gradient) if count_rows else 0,
        size.largest,
    )


def _count_nonzero_rows(gradient: Tensor) -> int:
    """Return how many rows of a gradient (R, *), or entries of a gradient (n,), are not all zero."""
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return int((values != 0).reshape(len(values), -1).any(1).sum()) if values.numel() else 0


def is_finite_loss(loss: Any) -> bool:
    """Return whether the loss is finite. It may be a Python number: `explain` then shows where `item` cut it."""
    if isinstance(loss, (int, float)) and not isinstance(loss, bool):
        return math.isfinite(loss)
    return extent(check_loss(loss).reshape(1)).finite


@contextlib.contextmanager
def _gradient_restored(leaf: Tensor) -> Iterator[None]:
    """Restore `.grad` of a leaf that was unknown before the graph showed it."""
    gradient, leaf.grad = leaf.grad, None
    try:
        yield
    finally:
        leaf.grad = gradient


def _copying_gradient(hooked: dict[int, Tensor], leaf: Tensor) -> Callable[[Any], None]:
    """Return a hook that copies the gradient of `leaf` to `hooked` before it is accumulated."""

    def copy(gradients: Any) -> None:
        if gradients[0] is not None:
            hooked[id(leaf)] = gradients[0].detach().clone()

    return copy
