"""The user's own passes and steps, watched while they run: gradients of each backward, what each step found and moved.

Nothing is run, and nothing that is computed changes: hooks on the graph only look, and nothing of them stays.
Parameters are taken as they appear: a layer that is made in the middle of the run is seen like the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from frostline.partial.model_tensors import learned_name, state_of
from frostline.probe.autograd_graph import backward_nodes, next_sequence_number
from frostline.probe.explain.backward import GradientStatus, is_finite_loss, status_of
from frostline.probe.explain.kept import KeptBuffers
from frostline.probe.explain.run_trace import RunTrace
from frostline.probe.explain.vanishing import Kind, Vanishing
from frostline.probe.explain.watched_steps import NOTHING, WatchedSteps
from frostline.probe.trace.provenance import Provenance
from frostline.probe.trace.source_line import SourceLine
from frostline.probe.trace.trace import Trace

_LIGHT = "No copy was kept (light): what moves without gradient, rounds away or is overwritten is not seen."


class WatchedRun(WatchedSteps):
    """What is seen of passes and steps while the block runs; it is both the pass and the step that are explained.

    Args:
        light: Keep no copy of what learns: whether a step moved it is then not known.

    Attributes:
        index: `id` of each tensor that was met -> its index in `gradients`.
        passes: How many backward passes have run.
    """

    def __init__(self, light: bool = False) -> None:
        super().__init__(light)
        self._buffers = KeptBuffers()
        self._start = next_sequence_number()
        self._run_trace = RunTrace(self.take, self._backward, self._note_write)
        self.trace: Trace = self._run_trace
        self.loss = Provenance(0, 0)
        self.cuts: dict[int, list[SourceLine]] = {}
        self.vanished: dict[int, list[SourceLine]] = {}
        self.spoilt: list[SourceLine] = []
        self.behind_zero: set[int] = set()
        self._leaves_reached: dict[int, Tensor] = {}
        self.has_graph = False

    def __enter__(self) -> WatchedRun:
        self.trace.__enter__()
        return self

    def end_with(self, frame: FrameType, forget: Callable[[], None]) -> None:
        """Stop watching, and call `forget`, once `frame` no longer runs."""
        self._run_trace.end_with(frame, forget)

    def forget(self) -> None:
        """Stop watching, whatever else has been entered since."""
        self._run_trace.abandon()
        self._run_trace.leave()
        self._kept_values.clear()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        self.trace.__exit__(kind, error, traceback)
        self._error = error
        if self._skipped_once():  # gradients that overflowed under a scaler's first scale: the step is yet to come
            self.gradients = [
                replace(status, not_finite="") if status.not_finite == "its gradient" else status
                for status in self.gradients
            ]

    @property
    def leaves_reached(self) -> list[Tensor]:
        """Every leaf that a loss reached."""
        return list(self._leaves_reached.values())

    @property
    def failure(self) -> Exception | None:
        """What went wrong while something was noted; nothing was noted after it."""
        return self._run_trace.failure

    def has_gradient(self, tensor: int) -> bool:
        """Return whether the tensor with this `id` has got a gradient."""
        return tensor in self.index and self.gradients[self.index[tensor]].kind != "none"

    @property
    def is_of_use(self) -> bool:
        """Whether there was a backward pass, or a step with gradients that came by another way."""
        return bool(self.passes or self._useful)

    @property
    def compiled(self) -> bool:
        """Whether compiled code ran."""
        return self._run_trace.compiled

    def note_optimizer(self, optimizer: Any) -> None:
        """Watch what an optimizer holds."""
        for group in optimizer.param_groups:
            for tensor in group["params"]:
                if not nn.parameter.is_lazy(tensor):
                    self.take(tensor)

    def note_module(self, module: nn.Module) -> None:
        """Watch the parameters and buffers that a module owns, from its first call on or from before it."""
        self._buffers.keep(module)
        if (state := state_of(module)) is not None:
            self._partial |= {id(module._parameters[learned_name(name)]) for name in state.partial}
        for parameter in module._parameters.values():
            if parameter is not None and parameter.requires_grad and not nn.parameter.is_lazy(parameter):
                self.take(parameter)

    def moving_buffers(self, model: nn.Module) -> list[str]:
        """Return the names of the buffers of a model that are not as they were."""
        return self._buffers.moving(model)

    # The backward pass

    def _backward(self, losses: Sequence[Tensor], run: Callable[[], Any]) -> Any:
        self.passes += torch._C._current_graph_task_id() < 0  # not one inside of another
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
                self._leaves_reached[id(leaf)] = leaf
                if id(leaf) in self.index or self.trace.bit_of_new(leaf):
                    index = self.index[id(leaf)]
                    self._kept_values.keep(index, self._tensors[index])  # an optimizer may step in the backward pass
                    stack.callback(node.register_prehook(self._noting(seen, index)).remove)
            result = run()
        self._fresh |= seen.keys()
        finite = all(is_finite_loss(loss) for loss in losses if loss.numel() == 1)
        if not finite:
            self.spoilt = self.spoilt or self.trace.nodes.where_not_finite([loss.grad_fn for loss in losses])
        learning = {id(self._tensors[index]) for index, status in seen.items() if status.kind == "nonzero"}
        for index, status in seen.items():
            if not finite and not status.not_finite:
                status = replace(status, not_finite="the loss")
            self.gradients[index] = self.gradients[index].merged(status)
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
        def merge(gradient: Tensor) -> None:
            tensor = self._tensors[index]
            status = status_of(tensor, gradient, id(tensor) in self._partial)
            seen[index] = seen.get(index, NOTHING).merged(status)

        def note(gradients: Any) -> None:
            if gradients[0] is not None:
                self._run_trace.safely(merge, gradients[0], otherwise=None)

        return note

    def reaches_loss(self, index: int) -> bool:
        """Return whether the value of a tensor reaches a loss."""
        return bool(self.loss.value >> index & 1)

    def remarks(self) -> list[str]:
        """Return what is to be said of the run as a whole."""
        lines = [] if self.is_of_use else ["No backward pass ran while it was watched."]
        lines += ["A scaler skipped the step: it looks for a scale at first."] if self._skipped_once() else []
        written = {line.where for index, line in self._writes.items() if not self.is_overwritten(index)}
        lines += [f"Weights were written to after the step, in {', '.join(sorted(written))}."] if written else []
        lines += [_LIGHT] if self._kept_values.light else []
        return lines
