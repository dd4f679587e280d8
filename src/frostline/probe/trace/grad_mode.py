"""Whether gradients flow in the call that is running, and the line that is to blame where they do not."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import grad_mode

from frostline.probe.restore.torch_calls import CUTS
from frostline.probe.trace.source_line import SourceLine, current_line, frame_outside


class GradMode:
    """What is known of it so far.

    Attributes:
        checkpoints: How many reentrant checkpoints are running, one inside the other.
    """

    def __init__(self) -> None:
        self.checkpoints = 0
        self._frame: int | None = None  # id of the frame that switched gradients off last
        self._lines = 0  # how many lines were noted: their order

    def note(self, func: Any, args: Any) -> None:
        """Note where gradients are switched off, if `func` does that."""
        if func is torch._C._set_grad_enabled and not args[0] and torch.is_grad_enabled():
            # `no_grad` calls this from torch's module grad_mode; the frame around that has the user's `with` in it, or
            # is torch's wrapper of a decorated function, whose body is the user's.
            frame = frame_outside(grad_mode)
            self._frame = None if frame is None else id(frame)

    def line(self, call: str) -> SourceLine | None:
        """Return the line to blame for a gradient that `call` loses."""
        self._lines += 1
        if torch.is_grad_enabled() or self.is_hidden:
            return current_line(call, self._lines)
        # The block around the call is to blame: the line in the function that has switched gradients off.
        call = "inference_mode" if torch.is_inference_mode_enabled() else "no_grad"
        return current_line(call, self._lines, self._frame)

    @property
    def is_hidden(self) -> bool:
        """Whether gradients flow although `requires_grad` does not show it.

        A reentrant checkpoint runs its forward under no_grad and makes the graph in the backward; torch.func keeps its
        own graph. There a gradient is taken to flow through every call but those in CUTS.
        """
        return bool(self.checkpoints) or torch._C._functorch.peek_interpreter_stack() is not None

    def may_flow(self, call: str) -> bool:
        """Return whether a gradient may flow through `call`."""
        return call not in CUTS if self.is_hidden else torch.is_grad_enabled()
