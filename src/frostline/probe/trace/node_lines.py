"""The line of each call that made a node of autograd's graph, found again by the node's sequence number."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from frostline.probe.trace.source_line import SourceLine, current_line


class NodeLines:
    """Lines, in the order in which the nodes were made.

    Attributes:
        made: For each call, the sequence number of the last node that it made, and its line.
        single_thread: Whether no other thread took part: sequence numbers are counted for each thread.
    """

    def __init__(self) -> None:
        self.made: list[tuple[int, SourceLine | None]] = []
        self.single_thread, self._thread = True, threading.get_ident()

    def note(self, call: str, output: Tensor) -> None:
        """Note the line that is running, in which `call` has returned `output`, if that has a node."""
        if torch.is_grad_enabled() and output.grad_fn is not None:
            self.single_thread &= threading.get_ident() == self._thread
            self.made.append((output.grad_fn._sequence_nr(), current_line(call, len(self.made))))
