"""The trace of a run that is watched: it also tells of backward passes, of writes, and of a scaler that is to step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor

from frostline.probe.restore.torch_calls import tensors_in
from frostline.probe.trace.trace import Trace


class RunTrace(Trace):
    """A Trace that is paused while a backward pass or a step runs.

    Args:
        parameters: See Trace.
        on_backward: Called instead of a backward pass, with its tensors and the function that runs it.
        on_write: Called after each write of a torch function, with the name of the function and the target.

    Attributes:
        paused: Whether nothing is noted for now.
        scaler_steps: How often a GradScaler was asked to step.
    """

    may_detach = False

    def __init__(
        self,
        parameters: Sequence[Tensor],
        on_backward: Callable[[Sequence[Tensor], Callable[[], Any]], Any],
        on_write: Callable[[str, Tensor], None],
    ) -> None:
        super().__init__(parameters)
        self._on_backward, self._on_write = on_backward, on_write
        self.paused = False
        self.scaler_steps = 0
        self._within: tuple[int, CodeType] | None = None
        self._abandoned: Callable[[], None] | None = None

    def end_with(self, frame: FrameType, abandoned: Callable[[], None]) -> None:
        """End, and call `abandoned`, once `frame` no longer runs: it has raised, so nobody will leave this trace."""
        # Not the frame itself, which would hold all of its locals.
        self._within, self._abandoned = (id(frame), frame.f_code), abandoned

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a torch function, and note it."""
        if self._within is not None and not _is_running(*self._within):
            self.abandon()
        return super().__torch_function__(func, types, args, kwargs)

    def abandon(self) -> None:
        """Note nothing from now on; the mode, which may be running, stays where it is and only passes calls on."""
        self.paused, self.ended, self._within = True, True, None
        self._stack.close()
        if self._abandoned is not None:
            self._abandoned()

    def leave(self) -> None:
        """Take the mode out of the stack of modes, wherever in it it is."""
        above: list[Any] = []
        while torch._C._len_torch_function_stack():
            mode = torch.overrides._pop_mode()
            if mode is self:
                break
            above.append(mode)
        for mode in reversed(above):
            torch.overrides._push_mode(mode)

    def run_call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a torch function, and note it unless paused."""
        return func(*args, **(kwargs or {})) if self.paused else super().run_call(func, args, kwargs)

    def run_backward(self, tensors: Any, run: Callable[[], Any]) -> Any:
        """Run a backward pass, and tell of it."""
        if self.paused:
            return run()
        self.paused = True
        try:
            return self._on_backward(tensors_in([tensors]), run)
        finally:
            self.paused = False

    def note_scaler_step(self) -> None:
        """Note that a GradScaler was asked to step."""
        self.scaler_steps += 1

    def note_target(self, name: str, target: Tensor) -> None:
        """Tell of a write."""
        self._on_write(name, target)


def _is_running(identity: int, code: CodeType) -> bool:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if id(frame) == identity and frame.f_code is code:
            return True
        frame = frame.f_back
    return False
