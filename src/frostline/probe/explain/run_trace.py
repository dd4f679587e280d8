"""The trace of a run that is watched: it also tells of backward passes, of writes, and of a scaler that is to step.

It sleeps until a tensor that requires a gradient is used: what came before depends on no parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frostline.probe.restore.torch_calls import tensors_in
from frostline.probe.trace.trace import Trace


class RunTrace(Trace):
    """A Trace that is paused while a backward pass or a step runs, and that takes parameters as they appear.

    Args:
        take: Called with a Parameter that is not known yet; returns its index.
        on_backward: Called instead of a backward pass, with its tensors and the function that runs it.
        on_write: Called after each write of a torch function, with the name of the function and the target.

    Attributes:
        paused: Whether nothing is noted for now.
        scaler_steps: How often a GradScaler was asked to step.
    """

    may_detach = False

    def __init__(
        self,
        take: Callable[[Tensor], int],
        on_backward: Callable[[Sequence[Tensor], Callable[[], Any]], Any],
        on_write: Callable[[str, Tensor], None],
    ) -> None:
        super().__init__(())
        self._take, self._on_backward, self._on_write = take, on_backward, on_write
        self._asleep = True
        self.paused = False
        self.scaler_steps = 0

    def follow(self, parameter: Tensor, index: int) -> None:
        """Follow a parameter from here on; whoever calls holds it, so that no id is used twice."""
        self._bits[id(parameter)] = 1 << index
        self._known.pop(id(parameter), None)

    def run_call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a torch function, and note it unless paused or asleep."""
        if self._asleep and not self.paused:
            used = tensors_in((args, kwargs) if kwargs else args)
            self._asleep = not any(type(tensor) is not Tensor or tensor.requires_grad for tensor in used)
        if self.paused or self._asleep:
            self.note_grad_mode(func, args)
            return func(*args, **(kwargs or {}))
        return super().run_call(func, args, kwargs)

    def bit_of_new(self, tensor: Tensor) -> int:
        """Return the bit of a Parameter that is met for the first time; 0 for any other tensor."""
        if not tensor.requires_grad or not isinstance(tensor, nn.Parameter) or nn.parameter.is_lazy(tensor):
            return 0
        return 1 << self._take(tensor)

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
