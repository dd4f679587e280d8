"""The user's own steps, watched while they run: what each was given, and what it moved."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.probe.explain.backward import GradientStatus, status_of
from frostline.probe.explain.kept import KeptValues
from frostline.probe.explain.optimizer_groups import OptimizerGroups
from frostline.probe.explain.run_trace import RunTrace
from frostline.probe.explain.step import Step
from frostline.probe.explain.vanishing import extent
from frostline.probe.explain.verdicts import LEARNING_RATE_0, STEP_RAISED, STEP_SKIPPED
from frostline.probe.restore.bits import local
from frostline.probe.trace.source_line import SourceLine, current_line

NOTHING = GradientStatus("none", "")


class WatchedSteps(Step):
    """The tensors that a run has met, and the steps that it took.

    Args:
        light: Keep no copy of what learns: whether a step moved it is then not known.

    Attributes:
        index: `id` of each tensor that was met -> its index in `gradients`.
        gradients: The GradientStatus of each.
        passes: How many backward passes have run.
    """

    _run_trace: RunTrace

    def __init__(self, light: bool) -> None:
        super().__init__(None, {})
        self._error: BaseException | None = None
        self._tensors: list[Tensor] = []
        self.index: dict[int, int] = {}
        self._partial: set[int] = set()  # those whose rows with a gradient are counted
        self.gradients: list[GradientStatus] = []
        self.passes = 0
        self._stepping = 0  # optimizers that are stepping now, one inside the other
        self._steps = 0
        self._kept_values = KeptValues(light)
        self._stale: set[int] = set()  # had a `.grad` when they were met
        self._fresh: set[int] = set()  # got a gradient since their last step
        self._stepped: set[int] = set()
        self._useful: set[int] = set()  # were stepped after a pass
        self._moved: set[int] = set()
        self._lost: dict[int, str] = {}
        self._kept: set[int] = set()
        self._rate_0: set[int] = set()
        self._rates_after: dict[int, list[float]] = {}
        self._writes: dict[int, SourceLine] = {}

    def take(self, tensor: Tensor, stepping: bool = False) -> int:
        """Watch a tensor from here on, if it is not watched yet; return its index.

        What `.grad` it has is an older one, unless it is met by the step that uses it.
        """
        if id(tensor) not in self.index:
            index = self.index[id(tensor)] = len(self._tensors)
            self._tensors.append(tensor)
            self.gradients.append(NOTHING)
            self._run_trace.follow(tensor, index)
            if not stepping and tensor.is_leaf and tensor.grad is not None:
                self._stale.add(index)
        return self.index[id(tensor)]

    def hook(self, optimizers: Iterable[Any], stack: contextlib.ExitStack) -> None:
        """Watch the steps of these optimizers until `stack` is closed."""
        for optimizer in map(_innermost, optimizers):
            if isinstance(optimizer, Optimizer):
                stack.callback(optimizer.register_step_pre_hook(self.before_step).remove)
                stack.callback(optimizer.register_step_post_hook(self.after_step).remove)

    def before_step(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        """Look at the gradients that a step is given; the pass that a closure runs inside of it is watched."""
        self._run_trace.paused = True
        self._steps += 1
        self._stepping += 1
        self._run_trace.safely(self._look_at_gradients, optimizer, otherwise=None)
        if not any(map(callable, (*args[1:], *kwargs.values()))):
            return None
        resumed = {name: self._resumed(value, optimizer) for name, value in kwargs.items()}
        return (*args[:1], *(self._resumed(value, optimizer) for value in args[1:])), resumed

    def _look_at_gradients(self, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            for tensor in group["params"]:
                if not nn.parameter.is_lazy(tensor):
                    self._look_at(tensor, group.get("lr"))

    def _look_at(self, tensor: Tensor, rate: Any) -> None:
        index = self.take(tensor, stepping=True)
        self._stepped.add(index)
        self._kept_values.keep(index, tensor)
        gradient = self.gradients[index]
        may = tensor.requires_grad and index not in self._stale  # what is frozen has an older one
        if gradient.kind == "none" and tensor.grad is not None and may:
            # It came by another way: torch.autograd.grad, a sum over processes, a pass that was not seen.
            status = status_of(tensor, tensor.grad, id(tensor) in self._partial)
            if status.kind == "nonzero":
                self.gradients[index] = gradient = status
                self._fresh.add(index)
        if gradient.kind != "nonzero" or index not in self._fresh:
            return
        if rate is not None and not float(rate):
            self._rate_0.add(index)
        if tensor.grad is None:
            self._lost[index] = "it got a gradient, but at the step it has none: zero_grad came before step"
        elif extent(tensor.grad).zero and local(tensor.grad).numel():  # an empty shard is not lost
            self._lost[index] = "it got a gradient, but at the step all zeros: clipped to nothing, or zeroed"
        else:
            self._kept.add(index)

    def _resumed(self, value: Any, optimizer: Any) -> Any:
        """Return a closure that is watched, although it runs inside a step; anything else as it is."""
        if not callable(value):
            return value

        def closure(*args: Any, **kwargs: Any) -> Any:
            paused, self._run_trace.paused = self._run_trace.paused, False
            try:
                return value(*args, **kwargs)
            finally:
                self._run_trace.paused = paused
                self._run_trace.safely(self._look_at_gradients, optimizer, otherwise=None)

        return closure

    def after_step(self, optimizer: Any, *_: Any) -> None:
        """Look at what a step has moved."""
        self._stepping -= 1
        self._run_trace.paused = self._stepping > 0
        self._run_trace.safely(self._look_at_values, optimizer, otherwise=None)

    def _look_at_values(self, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            for tensor in group["params"]:
                if (index := self.index.get(id(tensor))) is None:
                    continue
                if index in self._fresh:
                    self._useful.add(index)
                    self._fresh.discard(index)
                if index not in self._moved and self._differs(index):
                    self._moved.add(index)

    def _note_write(self, call: str, target: Tensor) -> None:
        index = self._kept_values.at(target) if self._steps else None
        if index is not None and (line := current_line(call)) is not None:
            self._writes[index] = line

    def _differs(self, index: int) -> bool:
        return self._kept_values.differ(index, self._tensors[index])

    @property
    def taken(self) -> bool:
        """Whether there was a step."""
        return self._steps > 0

    def moved(self, tensor: Tensor) -> bool | None:
        """Return whether a step changed any bit of `tensor`; None if that is not known."""
        index = self.index.get(id(tensor))
        if index is None or self._error is not None or index not in self._kept_values or not local(tensor).numel():
            return None
        moved = index in self._moved if index in self._stepped else self._differs(index)
        return moved or (None if index in self._rate_0 or self._skipped_once() else False)

    def note_rates(self, groups: OptimizerGroups) -> None:
        """Note the learning rates after the run."""
        self._rates_after = {id(tensor): groups.learning_rates(tensor) for tensor in groups.tensors}

    def learning_rates(self, tensor: Tensor, groups: OptimizerGroups) -> list[float]:
        """Return the learning rates after the run where they were 0 at the step: under a warm-up they are not."""
        return self._rates_after.get(id(tensor), groups.learning_rates(tensor))

    def why_not_taken(self, index: int) -> str:
        """Return why no step used the gradients of a tensor; empty if one did."""
        if self._error is not None or index in self._useful or not self.passes or self._skipped_once():
            return ""
        if index in self._stepped:
            return "the step came before the backward pass"
        if self._run_trace.scaler_steps and not self._steps:
            return f"the scaler skipped all {self._run_trace.scaler_steps} steps"
        if self.is_moved_unseen():
            return ""
        return f"no step came after {self.passes} backward pass{'es' if self.passes > 1 else ''}"

    def _skipped_once(self) -> bool:
        return not self._steps and self._run_trace.scaler_steps == 1

    def is_moved_unseen(self) -> bool:
        """Return whether something moved although no step was seen: an optimizer without hooks, compiled, or none."""
        return not self._steps and any(map(self._differs, range(len(self._tensors))))

    def why_gradient_was_lost(self, index: int) -> str:
        """Return what became of the gradient between backward and step; empty if it was still there."""
        return "" if index in self._kept else self._lost.get(index, "")

    def is_overwritten(self, index: int) -> bool:
        """Return whether the step moved a tensor that has its old bits again."""
        return index in self._moved and not self._differs(index)

    def overwriting_line(self, index: int) -> str | None:
        """Return the line that wrote to a tensor after the step, as `file:line`."""
        line = self._writes.get(index)
        return None if line is None else line.where

    def hints(self, index: int, tensor: Tensor) -> tuple[str, ...]:
        """Return notes on a rate of 0 that has changed since, and on a step that a scaler skipped."""
        rates = self._rates_after.get(id(tensor), [])
        warm_up = (LEARNING_RATE_0,) if index in self._rate_0 and any(rates) else ()
        if self.raised:
            return (STEP_RAISED,)
        return (*warm_up, *((STEP_SKIPPED,) if self._skipped_once() and self.gradients[index].kind != "none" else ()))

    @property
    def raised(self) -> str:
        """What the block raised; empty if it did not."""
        error = self._error
        return "" if error is None else f"The block raised {type(error).__name__}: {' '.join(str(error).split())}"


def _innermost(optimizer: Any) -> Any:
    while hasattr(inner := getattr(optimizer, "optimizer", None), "param_groups"):
        optimizer = inner
    return optimizer
