"""Explain the step that is taken anyway: the user's own forward, backward and step, watched while they run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from types import FrameType, TracebackType
from typing import Any

from torch import Tensor, nn

from frostline.errors import ProbeError
from frostline.partial.model_tensors import ModelTensor, find_tensors
from frostline.probe.explain.explanation import Explanation
from frostline.probe.explain.faint import faint_gradients
from frostline.probe.explain.findings import finding, of_frozen_modules
from frostline.probe.explain.optimizer_groups import OptimizerGroups
from frostline.probe.explain.watched_run import WatchedRun
from frostline.probe.inputs import check_model, unwrapped
from frostline.probe.trace.patches import is_traced

_COMPILED = "The model is compiled: lines inside of compiled code are not seen."
_NO_GRAPH = "The loss requires no gradient: nothing can learn from it."


class Watching:
    """What is seen of a training step while it runs; see `watching`.

    Attributes:
        model: The module that is explained, without what wraps it.
        explanation: The Explanation, when the block has ended.
    """

    def __init__(self, model: nn.Module, optimizer: Any = None, light: bool = False) -> None:
        check_model(model)
        self._groups = OptimizerGroups(optimizer)
        self._optimizer, self._light = optimizer, light
        self._compiled = is_compiled(model)
        self.model = unwrapped(model)
        self._explanation: Explanation | None = None
        self._failure: ProbeError | None = None
        self._stack = contextlib.ExitStack()

    @property
    def explanation(self) -> Explanation:
        """What trains, what does not, and why; ProbeError before the block has ended."""
        if self._failure is not None:
            raise self._failure
        if self._explanation is None:
            raise ProbeError("watching: the block has not ended, so there is no explanation yet. Ask for it after it.")
        return self._explanation

    def end_with(self, frame: FrameType) -> None:
        """Stop watching, without an explanation, once `frame` no longer runs: for callbacks that no error is told."""
        self._run.end_with(frame, self._stack.close)

    def forget(self) -> None:
        """Stop watching, without an explanation."""
        self._stack.close()
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
        self._run = WatchedRun(self._light)
        for module in self.model.modules():
            self._run.note_module(module)
        self._run.hook(self._groups.optimizers, self._stack)
        self._run.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        self._run.__exit__(kind, error, traceback)
        if isinstance(error, Exception | None):
            groups = OptimizerGroups(self._optimizer)
            try:
                self._explanation = explanations_of(self._run, {"": self.model}, groups, self._compiled)[""]
            except ProbeError as failure:  # the user's block goes on; who asks is told
                self._failure = failure


def is_compiled(model: nn.Module) -> bool:
    """Return whether a module, or one inside of it, is compiled."""
    return any("_orig_mod" in module._modules or module._compiled_call_impl for module in model.modules())


def explanations_of(
    run: WatchedRun, models: Mapping[str, nn.Module], groups: OptimizerGroups, compiled: bool
) -> dict[str, Explanation]:
    """Return what a run that is over says of each model.

    Args:
        run: The run.
        models: Name -> a model as it is now: parameters that came late are in it, and those that were replaced are not.
        groups: The optimizers as they are now.
        compiled: Whether any of it was compiled.

    Raises:
        ProbeError: Something went wrong while the run was watched.
    """
    if run.failure is not None:
        error = f"{type(run.failure).__name__}: {run.failure}"
        raise ProbeError(f"watching: the step could not be followed, though it ran: {error}") from run.failure
    if run.raised and not run.passes:
        return {name: Explanation([], [], [], raised=run.raised) for name in models}
    found = {name: find_tensors(model) for name, model in models.items()}
    leaves = [_leaf_of(each) for tensors in found.values() for each in tensors]
    for leaf in leaves:
        run.take(leaf)
    run.note_rates(groups)
    remarks = [_COMPILED] if compiled or run.compiled else []
    remarks += [_NO_GRAPH] if run.passes and not run.has_graph else []
    remarks += run.remarks()
    own = {id(leaf) for leaf in leaves}
    others = [leaf for leaf in run.leaves_reached if id(leaf) not in own]
    remarks += groups.remarks(nn.ModuleList(models.values()), leaves, others)
    return {name: _explanation(run, model, found[name], groups, remarks) for name, model in models.items()}


def _explanation(
    run: WatchedRun, model: nn.Module, found: list[ModelTensor], groups: OptimizerGroups, remarks: list[str]
) -> Explanation:
    indices = [run.index[id(_leaf_of(each))] for each in found]
    dtypes = {index: _leaf_of(each).dtype for index, each in zip(indices, found, strict=True)}
    faint = faint_gradients(run, dtypes)
    findings = [
        finding(index, each, _leaf_of(each), run, groups, run, index in run.behind_zero, faint.get(index))
        for index, each in zip(indices, found, strict=True)
    ]
    return Explanation(findings, of_frozen_modules(model, run.moving_buffers(model)), remarks, raised=run.raised)


def _leaf_of(model_tensor: ModelTensor) -> Tensor:
    """Return what optimizers hold of a tensor of a model: if it is partial, the part that learns."""
    return model_tensor.tensor if model_tensor.learned is None else model_tensor.learned


def watching(model: nn.Module, optimizer: Any = None, light: bool = False) -> Watching:
    """Explain the step that the block takes: the user's own forward, backward and step, or several of them.

    The verdicts, lines and notes are those of `explain`, from the real pass, the real gradients and the real step;
    nothing runs twice, and nothing is taken back. Three verdicts more say what became of the step as a whole:

    - "not stepped": a gradient came, but no step after it: an accumulation that never ends, a scaler that skips every
      step, a step before the backward pass.
    - "gradient lost": between backward and step the gradient was cleared, or clipped to zeros.
    - "overwritten": the step moved it, and afterwards it was given its old values again.

    A learning rate of 0 that a scheduler has raised by the end of the block, and the first step that a scaler skips,
    are notes. A layer that is made or replaced in the block is judged as it is at the end.

    Args:
        model: Any module. Of a compiled model, or one in DistributedDataParallel, the module inside is explained.
        optimizer: What steps the model, or a list of them. None: what only an optimizer can tell is not judged.
        light: Keep no copy of what learns. What moves without gradient, rounds away or is overwritten is then not
            seen.

    Returns:
        A context manager that yields a Watching: `.explanation` after the block, and `.check()`, which raises with the
        alarms. If the block raises, its error goes on.

    Raises:
        TypeError: `model` is not a module, or `optimizer` not an optimizer.
        ProbeError: The block is inside of another one, or of an `explain`.

    Cost: a note for each torch function, a look at each gradient, and a copy of what learns while the block runs, none
        with `light`.
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
    return Watching(model, optimizer, light)
