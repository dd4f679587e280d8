"""The user's own passes and steps, watched while they run: gradients of each backward, what each step found and moved.

Nothing is run, and nothing that is computed changes: hooks on the graph only look, and nothing of them stays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from frostline.probe.autograd_graph import backward_nodes, next_sequence_number
from frostline.probe.explain.backward import GradientStatus, is_finite_loss, status_of
from frostline.probe.explain.optimizer_groups import OptimizerGroups
from frostline.probe.explain.run_trace import RunTrace
from frostline.probe.explain.step import Step
from frostline.probe.explain.vanishing import Kind, Vanishing, extent
from frostline.probe.explain.verdicts import LEARNING_RATE_0, STEP_RAISED, STEP_SKIPPED
from frostline.probe.restore.bits import local, same, storage_address
from frostline.probe.trace.provenance import Provenance
from frostline.probe.trace.source_line import SourceLine, current_line
from frostline.probe.trace.trace import Trace

_NOTHING = GradientStatus("none", "")


class WatchedRun(Step):
    """What is seen of passes and steps while the block runs; it is both the pass and the step that are explained.

    Args:
        tensors: Leaf tensors to watch.
        others: Further tensors that a step might move: the frozen parts of partial tensors.
        partial: Indices of the tensors whose rows with a gradient are counted.
        groups: The optimizers.
    """

    def __init__(
        self, tensors: Sequence[Tensor], others: Sequence[Tensor], partial: Container[int], groups: OptimizerGroups
    ) -> None:
        super().__init__(None, {})
        self._tensors, self._partial, self._groups = tensors, partial, groups
        self._error: BaseException | None = None
        self._index = {id(tensor): index for index, tensor in enumerate(tensors)}
        self._start = next_sequence_number()
        self._hooks = contextlib.ExitStack()
        self._run_trace = RunTrace(tensors, self._backward, self._note_write)
        self.trace: Trace = self._run_trace
        self.gradients: list[GradientStatus] = [_NOTHING for _ in tensors]
        self.loss = Provenance(0, 0)
        self.cuts: dict[int, list[SourceLine]] = {}
        self.vanished: dict[int, list[SourceLine]] = {}
        self.spoilt: list[SourceLine] = []
        self.behind_zero: set[int] = set()
        self.other_leaves: list[Tensor] = []
        self.has_graph = False
        self.passes = self.steps = self.useful_steps = 0
        self._passes_before_step = 0
        self._values = {id(tensor): local(tensor).clone() for tensor in (*tensors, *others)}
        self._addresses = {storage_address(tensor): index for index, tensor in enumerate(tensors)}
        self._moved: set[int] = set()
        self._lost: dict[int, str] = {}
        self._kept: set[int] = set()
        self._rate_0: set[int] = set()
        self._writes: dict[int, SourceLine] = {}
        for optimizer in map(_innermost, groups.optimizers):
            if isinstance(optimizer, Optimizer):
                self._hooks.callback(optimizer.register_step_pre_hook(self._before_step).remove)
                self._hooks.callback(optimizer.register_step_post_hook(self._after_step).remove)

    def __enter__(self) -> WatchedRun:
        self.trace.__enter__()
        return self

    def end_with(self, frame: FrameType) -> None:
        """Forget everything once `frame` no longer runs."""
        self._run_trace.end_with(frame, self._let_go)

    def forget(self) -> None:
        """Stop watching, whatever else has been entered since."""
        self._run_trace.abandon()
        self._run_trace.leave()
        self._let_go()

    def _let_go(self) -> None:
        self._hooks.close()
        self._values.clear()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        self.trace.__exit__(None, None, None)
        self._hooks.close()
        self._error = error
        self._rates_after = {id(tensor): self._groups_now().learning_rates(tensor) for tensor in self._tensors}

    def _groups_now(self) -> OptimizerGroups:
        return OptimizerGroups(self._groups.optimizers or None)

    # The backward pass

    def _backward(self, losses: Sequence[Tensor], run: Callable[[], Any]) -> Any:
        self.passes += 1
        self._passes_before_step += 1
        nodes = list(dict.fromkeys(node for loss in losses for node in backward_nodes(loss.grad_fn)))
        self.has_graph |= bool(nodes)
        seen: dict[int, GradientStatus] = {}
        vanishing = Vanishing(nodes, self.trace.nodes.made if self.trace.nodes.single_thread else (), self._start)
        with contextlib.ExitStack() as stack:
            stack.callback(vanishing.stop)
            for node in nodes:
                leaf = getattr(node, "variable", None)
                if leaf is None:
                    continue
                if (index := self._index.get(id(leaf))) is not None:
                    stack.callback(node.register_prehook(self._noting(seen, index)).remove)
                else:
                    self.other_leaves.append(leaf)
            result = run()
        finite = all(is_finite_loss(loss) for loss in losses if loss.numel() == 1)
        if not finite:
            self.spoilt = self.spoilt or self.trace.nodes.where_not_finite([loss.grad_fn for loss in losses])
        learning = {id(self._tensors[index]) for index, status in seen.items() if status.kind == "nonzero"}
        for index, status in seen.items():
            if not finite and not status.not_finite:
                status = replace(status, not_finite="the loss")
            self.gradients[index] = _merged(self.gradients[index], status)
            if status.kind == "zero" or status.not_finite == "its gradient":
                kind: Kind = "zero" if status.kind == "zero" else "not finite"
                if lines := vanishing.lines(self._tensors[index], kind):
                    self.vanished[index] = lines
                if kind == "zero" and vanishing.is_behind_zero(self._tensors[index], learning):
                    self.behind_zero.add(index)
        for loss in losses:
            self.loss = Provenance.merged([self.loss, self.trace.provenance(loss)])
            missing = sum(1 << index for index, status in enumerate(self.gradients) if status.kind == "none")
            for index, lines in self.trace.cuts(loss, missing).items():
                self.cuts.setdefault(index, lines)
        return result

    def _noting(self, seen: dict[int, GradientStatus], index: int) -> Callable[[Any], None]:
        def note(gradients: Any) -> None:
            if gradients[0] is not None:
                status = status_of(self._tensors[index], gradients[0], index in self._partial)
                seen[index] = _merged(seen.get(index, _NOTHING), status)

        return note

    def reaches_loss(self, index: int) -> bool:
        """Return whether the value of a tensor reaches a loss."""
        return bool(self.loss.value >> index & 1)

    # The step

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        self._run_trace.paused = True
        self.steps += 1
        at = 1 if len(args) > 1 else "closure"
        closure = args[1] if at == 1 else kwargs.get("closure")
        if not callable(closure):
            self._look_at_gradients(optimizer)
            return None
        watched = self._watched_closure(optimizer, closure)
        return ((args[0], watched, *args[2:]), kwargs) if at == 1 else (args, {**kwargs, "closure": watched})

    def _watched_closure(self, optimizer: Any, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Return `closure`, watched: it runs forward and backward inside of the step (LBFGS, Lightning)."""

        def watched() -> Any:
            self._run_trace.paused = False
            try:
                return closure()
            finally:
                self._run_trace.paused = True
                self._look_at_gradients(optimizer)

        return watched

    def _look_at_gradients(self, optimizer: Any) -> None:
        """Note what became of the gradients until the step uses them."""
        if not self._passes_before_step:
            return
        for group in optimizer.param_groups:
            for tensor in group["params"]:
                index = self._index.get(id(tensor))
                if index is None or self.gradients[index].kind != "nonzero":
                    continue
                if group.get("lr") is not None and not float(group["lr"]):
                    self._rate_0.add(index)
                if tensor.grad is None:
                    self._lost[index] = "it got a gradient, but at the step it has none: zero_grad came before step"
                elif extent(tensor.grad).zero:
                    self._lost[index] = "it got a gradient, but at the step all zeros: clipped to nothing, or zeroed"
                else:
                    self._kept.add(index)

    def _after_step(self, *_: Any) -> None:
        self._run_trace.paused = False
        self.useful_steps += bool(self._passes_before_step)
        self._passes_before_step = 0
        self._moved |= {index for index, tensor in enumerate(self._tensors) if self._differs(tensor)}

    def _note_write(self, call: str, target: Tensor) -> None:
        index = self._addresses.get(storage_address(target)) if self.steps else None
        if index is not None and (line := current_line(call)) is not None:
            self._writes[index] = line

    def _differs(self, tensor: Tensor) -> bool:
        return not same(self._values[id(tensor)], tensor)

    @property
    def taken(self) -> bool:
        """Whether there was a step."""
        return self.steps > 0

    def moved(self, tensor: Tensor) -> bool | None:
        """Return whether any bit of `tensor` changed; None if that is not known."""
        index = self._index.get(id(tensor))
        unknown = not self._groups.optimizers or self._error is not None
        if unknown or id(tensor) not in self._values or not local(tensor).numel():
            return None
        if index is not None and (index in self._rate_0 or self._skipped_once()):
            return None if not self._differs(tensor) else True
        return self._differs(tensor) or index in self._moved

    def learning_rates(self, tensor: Tensor, groups: OptimizerGroups) -> list[float]:
        """Return the learning rates after the run where they were 0 at the step: under a warm-up they are not."""
        return self._rates_after.get(id(tensor), groups.learning_rates(tensor))

    def why_not_taken(self) -> str:
        """Return why no step used the gradients of the run; empty if one did."""
        if (
            self._error is not None
            or self.useful_steps
            or not self.passes
            or self._skipped_once()
            or self._moved_unseen()
        ):
            return ""
        if self.steps:
            return "the step came before the backward pass"
        if self._run_trace.scaler_steps:
            return f"the scaler skipped all {self._run_trace.scaler_steps} steps"
        return f"no step came after {self.passes} backward pass{'es' if self.passes > 1 else ''}"

    def _skipped_once(self) -> bool:
        return not self.steps and self._run_trace.scaler_steps == 1

    def _moved_unseen(self) -> bool:
        """Return whether something moved although no step was seen: an optimizer without hooks, or in the backward."""
        return not self.steps and any(map(self._differs, self._tensors))

    def why_gradient_was_lost(self, index: int) -> str:
        """Return what became of the gradient between backward and step; empty if it was still there."""
        return "" if index in self._kept else self._lost.get(index, "")

    def is_overwritten(self, index: int) -> bool:
        """Return whether the step moved a tensor that has its old bits again."""
        return index in self._moved and not self._differs(self._tensors[index])

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

    def remarks(self) -> list[str]:
        """Return what is to be said of the run as a whole."""
        lines = [] if self.passes else ["No backward pass ran while it was watched."]
        lines += ["A scaler skipped the step: it looks for a scale at first."] if self._skipped_once() else []
        written = {line.where for index, line in self._writes.items() if not self.is_overwritten(index)}
        lines += [f"Weights were written to after the step, in {', '.join(sorted(written))}."] if written else []
        return lines

    def forgive_skipped(self) -> None:
        """Take gradients that overflowed under a scaler's first scale as those of a step that is yet to come."""
        if self._skipped_once():
            self.gradients = [
                replace(status, not_finite="") if status.not_finite == "its gradient" else status
                for status in self.gradients
            ]


def _merged(first: GradientStatus, second: GradientStatus) -> GradientStatus:
    kinds = {first.kind, second.kind}
    kind = "nonzero" if "nonzero" in kinds else "zero" if "zero" in kinds else "none"
    return GradientStatus(
        kind,  # type: ignore[arg-type]
        first.not_finite or second.not_finite,
        max(first.rows, second.rows),
        max(first.largest, second.largest),
    )


def _innermost(optimizer: Any) -> Any:
    while hasattr(inner := getattr(optimizer, "optimizer", None), "param_groups"):
        optimizer = inner
    return optimizer
