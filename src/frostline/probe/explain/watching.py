"""Explain the step that is taken anyway: the user's own forward, backward and step, watched while they run."""

from __future__ import annotations

from types import FrameType, TracebackType
from typing import Any

from torch import nn

from frostline.errors import ProbeError
from frostline.partial.model_tensors import find_tensors
from frostline.probe.explain.explanation import Explanation
from frostline.probe.explain.faint import faint_gradients
from frostline.probe.explain.findings import finding, of_frozen_modules
from frostline.probe.explain.optimizer_groups import OptimizerGroups
from frostline.probe.explain.watched_run import WatchedRun
from frostline.probe.inputs import check_model, unwrapped
from frostline.probe.restore.bits import local, same
from frostline.probe.trace.patches import is_traced

_COMPILED = "The model is compiled: lines inside of compiled code are not seen."
_NO_GRAPH = "The loss requires no gradient: nothing can learn from it."


class Watching:
    """What is seen of a training step while it runs; see `watching`.

    Attributes:
        model: The module that is explained, without what wraps it.
        explanation: The Explanation, when the block has ended.
    """

    def __init__(self, model: nn.Module, optimizer: Any = None) -> None:
        check_model(model)
        self._groups = OptimizerGroups(optimizer)
        self._compiled = any("_orig_mod" in module._modules for module in model.modules())
        self.model = unwrapped(model)
        self._explanation: Explanation | None = None

    @property
    def explanation(self) -> Explanation:
        """What trains, what does not, and why; ProbeError before the block has ended."""
        if self._explanation is None:
            raise ProbeError("watching: the block has not ended, so there is no explanation yet. Ask for it after it.")
        return self._explanation

    @property
    def has_seen_a_pass(self) -> bool:
        """Whether a backward pass has run in the block."""
        return self._run.passes > 0

    def end_with(self, frame: FrameType) -> None:
        """Stop watching, without an explanation, once `frame` no longer runs: for callbacks that no error is told."""
        self._run.end_with(frame)

    def forget(self) -> None:
        """Stop watching, without an explanation."""
        self._run.forget()

    def check(self) -> None:
        """Raise ProbeError, with the table, if any parameter does not train as it stands, or the block raised."""
        if self.explanation.alarms or self.explanation.raised:
            raise ProbeError(str(self.explanation))

    def __enter__(self) -> Watching:
        if is_traced():
            raise ProbeError(
                "watching: this thread is watched or explained already, and one would not see. Leave that."
            )
        self._found = find_tensors(self.model)
        self._leaves = [each.tensor if each.learned is None else each.learned for each in self._found]
        frozen_parts = [each.tensor for each in self._found if each.learned is not None and not each.mapped]
        held = {id(tensor) for tensor in self._groups.tensors}
        self._buffers = {name: local(buffer).clone() for name, buffer in self.model.named_buffers()}
        partial = {index for index, each in enumerate(self._found) if each.indices is not None}
        others = [tensor for tensor in frozen_parts if id(tensor) in held]
        self._run = WatchedRun(self._leaves, others, partial, self._groups)
        self._run.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._run.__exit__(kind, error, traceback)
        if isinstance(error, Exception | None):
            self._explanation = self._explain()

    def _explain(self) -> Explanation:
        run = self._run
        run.forgive_skipped()
        if run.raised and not run.passes:
            return Explanation([], [], [], raised=run.raised)
        faint = faint_gradients(run, [leaf.dtype for leaf in self._leaves])
        findings = [
            finding(
                index, each, self._leaves[index], run, self._groups, run, index in run.behind_zero, faint.get(index)
            )
            for index, each in enumerate(self._found)
        ]
        remarks = [_COMPILED] if self._compiled else []
        remarks += [_NO_GRAPH] if run.passes and not run.has_graph else []
        remarks += run.remarks()
        remarks += self._groups.remarks(self.model, self._leaves, run.other_leaves)
        now = dict(self.model.named_buffers())
        moving = [name for name in now if name not in self._buffers or not same(self._buffers[name], now[name])]
        return Explanation(findings, of_frozen_modules(self.model, moving), remarks, raised=run.raised)


def watching(model: nn.Module, optimizer: Any = None) -> Watching:
    """Explain the step that the block takes: the user's own forward, backward and step, or several of them.

    The verdicts, lines and notes are those of `explain`, from the real pass, the real gradients and the real step;
    nothing runs twice, and nothing is taken back. Three verdicts more say what became of the step as a whole:

    - "not stepped": a gradient came, but no step after it: an accumulation that never ends, a scaler that skips every
      step, a step before the backward pass.
    - "gradient lost": between backward and step the gradient was cleared, or clipped to zeros.
    - "overwritten": the step moved it, and afterwards it was given its old values again.

    A learning rate of 0 that a scheduler has raised by the end of the block, and the first step that a scaler skips,
    are notes.

    Args:
        model: Any module. Of a compiled model, or one in DistributedDataParallel, the module inside is explained.
        optimizer: What steps the model, or a list of them. None: what only an optimizer can tell is not judged.

    Returns:
        A context manager that yields a Watching: `.explanation` after the block, and `.check()`, which raises with the
        alarms. If the block raises, its error goes on.

    Raises:
        TypeError: `model` is not a module, or `optimizer` not an optimizer.
        ProbeError: The block is inside of another one, or of an `explain`.

    Cost: a note for each torch function, a look at each gradient, and a copy of the parameters while the block runs.
        Losses, weights, optimizer state and random numbers are those of a step that is not watched, bit for bit.

    Example:
        >>> import torch, frostline as fl
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with fl.watching(model, optimizer) as seen:
        ...     model[1](model[0](torch.ones(3, 2)).detach()).sum().backward()
        ...     optimizer.step()
        >>> seen.explanation.alarms, seen.explanation.to_dict()["0.weight"]["verdict"]
        (['0.weight', '0.bias'], 'cut')
    """
    return Watching(model, optimizer)
