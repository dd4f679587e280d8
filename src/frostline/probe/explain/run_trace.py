"""The trace of a run that is watched: it also tells of backward passes, of writes, and of a scaler that is to step.

It sleeps until a tensor that requires a gradient is used: what came before depends on no parameter.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import CodeType, FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from frostline.probe.restore.torch_calls import tensors_in
from frostline.probe.trace.provenance import Provenance
from frostline.probe.trace.trace import Trace

T = TypeVar("T")


class RunTrace(Trace):
    """A Trace that is paused while a backward pass or a step runs, and that takes parameters as they appear.

    Args:
        take: Called with a Parameter that is not known yet; returns its index.
        on_backward: Called instead of a backward pass, with its tensors and the function that runs it.
        on_write: Called after each write of a torch function, with the name of the function and the target.

    Attributes:
        paused: Whether nothing is noted for now.
        failure: What went wrong while something was noted: from then on nothing is, and the user's code goes on.
        compiled: Whether compiled code ran.
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
        self.paused = self._in_backward = False
        self.failure: Exception | None = None
        self.scaler_steps = 0
        self.compiled = False
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

    def follow(self, parameter: Tensor, index: int) -> None:
        """Follow a parameter from here on; whoever calls holds it, so that no id is used twice."""
        self._bits[id(parameter)] = 1 << index
        self._known.pop(id(parameter), None)

    def safely(self, note: Callable[..., T], *args: Any, otherwise: T) -> T:
        """Return `note(*args)`, or `otherwise` if that fails, now or before."""
        if self.failure is None:
            try:
                return note(*args)
            except Exception as error:  # ours, whatever it is: the user's step must not end by it
                self.failure = error
        return otherwise

    def safely_around(self, watched: Callable[[Callable[[], Any]], Any], run: Callable[[], Any]) -> Any:
        """Return `watched(run)`, in which only what `run` raises is raised."""
        started, results = False, []

        def once() -> Any:
            nonlocal started
            started = True
            results.append(run())
            return results[0]

        if self.failure is not None:
            return run()
        try:
            return watched(once)
        except Exception as error:
            if started and not results:
                raise
            self.failure = error
            return results[0] if results else run()

    def run_call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a torch function, and note it unless paused or asleep."""
        if self._asleep and not self.paused:
            used = tensors_in((args, kwargs) if kwargs else args)
            self._asleep = not any(type(tensor) is not Tensor or tensor.requires_grad for tensor in used)
        if self.paused or self._asleep or self.failure is not None:
            self.grad_mode.note(func, args)
            return func(*args, **(kwargs or {}))
        return super().run_call(func, args, kwargs)

    def writes_of(self, name: str, args: Any, kwargs: Any) -> list[tuple[Tensor, Provenance]]:
        """Return what a call is about to write to."""
        return self.safely(super().writes_of, name, args, kwargs, otherwise=[])

    def note_result(self, name: str, args: Any, kwargs: Any, result: Any, writes: Any) -> None:
        """Note what a call has returned."""
        self.safely(super().note_result, name, args, kwargs, result, writes, otherwise=None)

    def note_parameter(self, parameter: Tensor) -> None:
        """Note a Parameter that the line running now has made."""
        if not self.paused:
            self.safely(super().note_parameter, parameter, otherwise=None)

    def run_function(self, function: Any, args: Any, run: Callable[[], Any]) -> Any:
        """Run a custom autograd.Function, and note it unless paused."""
        if self.paused:
            return run()
        self.compiled |= function.__name__ == "CompiledFunction"  # what torch.compile calls, where gradients are needed
        note = super().run_function
        return self.safely_around(lambda once: note(function, args, once), run)

    def bit_of_new(self, tensor: Tensor) -> int:
        """Return the bit of a Parameter that is met for the first time; 0 for any other tensor."""
        if not tensor.requires_grad or not isinstance(tensor, nn.Parameter) or nn.parameter.is_lazy(tensor):
            return 0
        return 1 << self._take(tensor)

    def run_backward(self, tensors: Any, run: Callable[[], Any]) -> Any:
        """Run a backward pass, and tell of it, also of one inside of another: a reentrant checkpoint runs it."""
        if self.paused and not self._in_backward:
            return run()
        before = self.paused, self._in_backward
        self.paused = self._in_backward = True
        try:
            losses = tensors_in([tensors])
            return self.safely_around(lambda once: self._on_backward(losses, once), run)
        finally:
            self.paused, self._in_backward = before

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
