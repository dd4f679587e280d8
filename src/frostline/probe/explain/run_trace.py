"""The trace of a run that is watched: it also tells of backward passes, of writes, and of a scaler that is to step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
