"""The line of each call that made a node of autograd's graph, found again by the node's sequence number.

Of what each call returned the least and the largest value are kept, two numbers that nobody waits for. When a loss
turns out to be NaN or Inf, they say which call made it so.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import torch
from torch import Tensor, nn

from frostline.probe.trace.source_line import SourceLine, current_line

_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}  # float8 cannot be compared


class NodeLines:
    """Lines, in the order in which the nodes were made.

    Attributes:
        made: For each call, the sequence number of the last node that it made, and its line.
        single_thread: Whether no other thread took part: sequence numbers are counted for each thread.
    """

    def __init__(self) -> None:
        self.made: list[tuple[int, SourceLine | None]] = []
        self.single_thread, self._thread = True, threading.get_ident()
        self._extremes: list[tuple[Tensor, Tensor] | None] = []  # for each call

    def note(self, call: str, output: Tensor) -> None:
        """Note the line that is running, in which `call` has returned `output`, if that has a node."""
        if torch.is_grad_enabled() and output.grad_fn is not None:
            self.single_thread &= threading.get_ident() == self._thread
            self.made.append((output.grad_fn._sequence_nr(), current_line(call, len(self.made))))
            self._extremes.append(_extremes(output))

    def where_not_finite(self, roots: list[Any]) -> list[SourceLine]:
        """Return the lines that made NaN or Inf of finite numbers, on the way to the nodes `roots`, as they ran."""
        if not self.single_thread:
            return []
        calls = {number: index for index, (number, _) in enumerate(self.made)}
        origins: set[int] = set()
        # From each call that is not finite on to the calls before it; nodes inside of a call have no values here.
        waiting: list[tuple[Any, int | None]] = [(root, None) for root in roots if root is not None]
        behind: set[int] = set()  # calls that got NaN or Inf from one before them
        done: set[tuple[Any, int | None]] = set()
        while waiting:
            node, after = waiting.pop()
            if (node, after) in done:
                continue
            done.add((node, after))
            index = calls.get(node._sequence_nr()) if not hasattr(node, "variable") else None
            if index is not None and (extremes := self._extremes[index]) is not None:
                if all(math.isfinite(extreme) for extreme in extremes):
                    continue
                origins.add(index)
                behind |= set() if after is None else {after}
                after = index
            waiting += [(following, after) for following, _ in node.next_functions if following is not None]
        lines = [self.made[index][1] for index in sorted(origins - behind)]
        return [line for line in lines if line is not None]


def _extremes(output: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the least and the largest value; None of a tensor that is not plain numbers in memory."""
    plain = type(output) in (Tensor, nn.Parameter) and output.dtype in _DTYPES and output.layout is torch.strided
    if not plain or output.is_meta or not output.numel() or torch._C._functorch.is_functorch_wrapped_tensor(output):
        return None
    return torch.aminmax(output.detach())
