"""One forward and backward pass, watched: what the backward brought for each tensor, and what the trace says of it.

It runs inside `kept`, which has taken every `.grad` out of sight.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from frostline.errors import ProbeError
from frostline.probe.autograd_graph import next_sequence_number, nodes_under
from frostline.probe.restore.bits import local
from frostline.probe.restore.restored import stance
from frostline.probe.trace.source_line import Site, run_pass
from frostline.probe.trace.trace import Trace


@dataclass(frozen=True)
class Brought:
    """What a backward pass brought for one tensor.

    Attributes:
        gradient: Nothing at all, exact zeros, or numbers.
        not_finite: What holds NaN or Inf: "its gradient", "it" or "the loss"; empty if nothing does.
        rows: How many of its rows, (R, *), or entries, (n,), got a gradient that is not zero.
    """

    gradient: Literal["none", "zero", "numbers"]
    not_finite: str
    rows: int = 0


class Observed:
    """What a watched pass showed.

    Attributes:
        brought: What the backward brought, one for each tensor.
        trace: What reached what.
        reached: Mask of the tensors whose value reaches the loss.
        cuts: Place of a tensor -> the lines in which its gradient was lost.
        outside: Leaves that got a gradient and are none of the tensors.
        connected: Whether the loss requires a gradient at all.
    """

    def __init__(self, tensors: Sequence[Tensor], loss_fn: Callable[[], Tensor], in_parts: Container[int] = ()) -> None:
        """Run `loss_fn` and its backward; `in_parts`: places of the tensors whose rows are counted."""
        start = next_sequence_number()
        with stance("force_eager"), Trace(tensors) as self.trace:
            loss = run_pass(loss_fn)
        finite = _is_finite_loss(loss)
        self.outside: list[Tensor] = []
        self.connected = isinstance(loss, Tensor) and loss.grad_fn is not None
        hooked: dict[int, Tensor] = {}
        with contextlib.ExitStack() as stack:
            if self.connected:
                self._backward(loss, tensors, start, hooked, stack)
            self.brought = [
                _brought(one, one.grad if one.grad is not None else hooked.get(id(one)), place in in_parts)
                for place, one in enumerate(tensors)
            ]
        if not finite:
            self.brought = [
                one if one.not_finite or one.gradient == "none" else replace(one, not_finite="the loss")
                for one in self.brought
            ]
        missing = sum(1 << place for place, one in enumerate(self.brought) if one.gradient == "none")
        self.reached = self.trace.of(loss).value
        self.cuts: dict[int, list[Site]] = self.trace.cuts(loss, missing)

    def reaches(self, place: int) -> bool:
        """Whether the value of the tensor in this place reaches the loss."""
        return bool(self.reached >> place & 1)

    def _backward(
        self, loss: Tensor, tensors: Sequence[Tensor], start: int, hooked: dict[int, Tensor], stack: Any
    ) -> None:
        known = {id(tensor) for tensor in tensors}
        nodes = list(nodes_under(loss.grad_fn))
        for node in nodes:
            leaf = getattr(node, "variable", None)
            if leaf is None:
                continue
            if id(leaf) not in known:
                self.outside.append(leaf)
                stack.enter_context(_gradient_kept(leaf))
            if leaf._post_accumulate_grad_hooks:  # an optimizer in the backward pass may take `.grad` away
                stack.callback(node.register_prehook(_noting(hooked, leaf)).remove)
        loss.backward(retain_graph=any(node._sequence_nr() < start for node in nodes))


def extremes(tensor: Tensor) -> tuple[bool, bool]:
    """Whether all of it is zero, and whether all of it is finite: one look at every number, no copy."""
    tensor = local(tensor)
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if not tensor.numel() or tensor.is_meta:
        return True, True
    least, most = (float(one) for one in torch.aminmax(tensor))
    return least == most == 0, math.isfinite(least) and math.isfinite(most)


def _brought(tensor: Tensor, gradient: Tensor | None, count_rows: bool) -> Brought:
    spoilt = "" if not tensor.requires_grad or extremes(tensor)[1] else "it"
    if gradient is None:
        return Brought("none", spoilt)
    zero, finite = extremes(gradient)
    rows = _rows_with_numbers(gradient) if count_rows else 0
    return Brought("zero" if zero and local(tensor).numel() else "numbers", spoilt if finite else "its gradient", rows)


def _rows_with_numbers(gradient: Tensor) -> int:
    """How many rows of a gradient (R, *), or entries of one (n,), are not all zero."""
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return int((values != 0).reshape(len(values), -1).any(1).sum()) if values.numel() else 0


def _is_finite_loss(loss: Any) -> bool:
    """Whether the loss is finite; an error if it is no loss. A Python number is one that was cut by `item`."""
    if isinstance(loss, (int, float)) and not isinstance(loss, bool):
        return math.isfinite(loss)
    if not isinstance(loss, Tensor):
        hint = " Return its `.loss`." if hasattr(loss, "loss") else ""
        raise ProbeError(f"loss_fn: it returned {type(loss).__name__}, but the loss must be a tensor.{hint}")
    if loss.numel() != 1:
        raise ProbeError(
            f"loss_fn: the loss has shape {tuple(loss.shape)}, but it must be one number. Return its mean."
        )
    return extremes(loss.reshape(1))[1]


@contextlib.contextmanager
def _gradient_kept(leaf: Tensor) -> Iterator[None]:
    """Keep `.grad` of a leaf that nobody knew of before the graph showed it."""
    gradient, leaf.grad = leaf.grad, None
    try:
        yield
    finally:
        leaf.grad = gradient


def _noting(hooked: dict[int, Tensor], leaf: Tensor) -> Callable[[Any], None]:
    def note(gradients: Any) -> None:
        if gradients[0] is not None:
            hooked[id(leaf)] = gradients[0].detach().clone()

    return note
