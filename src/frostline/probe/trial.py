"""Take a real training step, report what it moved, restore everything.

The idea: nothing is predicted. The loss is really differentiated, every optimizer really steps, with all hooks, each
entry is compared bit by bit with what it was, and `restored` (restore/restored.py) undoes the step. `explain` takes the
same step to see what moves.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frostline.errors import ProbeError
from frostline.partial.model_tensors import ModelTensor, find_tensors
from frostline.partial.sharded import is_sharded, shard_slices
from frostline.printing import listed, text_table
from frostline.probe.changes import EntryChanges, Tally, first_row
from frostline.probe.inputs import check_loss, check_loss_fn, check_model, check_optimizers, own_backward, unwrapped
from frostline.probe.restore.bits import local, same
from frostline.probe.restore.reachable import optimizers_in_backward
from frostline.probe.restore.restored import restored
from frostline.probe.restore.snapshot import Snapshot

_MOST_LINES = 40  # a model with more tensors than this has those that did not move summed up in one line
_MOST_BUFFERS = 6


class Trial:
    """What a step moved. Print it for a table; `trial["embed.weight"]` is the `EntryChanges` of one tensor.

    Attributes:
        tensors: Name of each parameter -> its changes, in the model's order. A partial tensor is listed once, under its
            plain name, with rows and entries of the whole tensor; tied tensors once, under their first name.
        buffers: Names of the buffers that the pass changed.
        loss: The loss of the step; None if only closures computed it.
    """

    def __init__(self, tensors: Mapping[str, EntryChanges], buffers: Sequence[str], loss: float | None) -> None:
        self.tensors = dict(tensors)
        self.buffers = tuple(buffers)
        self.loss = loss

    def __getitem__(self, name: str) -> EntryChanges:
        return self.tensors[name]

    @property
    def entries_moved(self) -> int:
        """How many entries moved, over all tensors."""
        return sum(changes.entries_moved for changes in self.tensors.values())

    @property
    def entries(self) -> int:
        """How many entries all tensors have."""
        return sum(changes.entries for changes in self.tensors.values())

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return for the name of each parameter its `EntryChanges.to_dict()`: plain values."""
        return {name: changes.to_dict() for name, changes in self.tensors.items()}

    def __str__(self) -> str:
        few = len(self.tensors) <= _MOST_LINES
        shown = {name: changes for name, changes in self.tensors.items() if few or changes.entries_moved}
        rows = [("tensor", "moved", "rows", "largest", "median")]
        rows += [_table_row(name, changes) for name, changes in shown.items()]
        if len(shown) < len(self.tensors):
            rows.append((f"({len(self.tensors) - len(shown)} more tensors)", "nothing", "", "", ""))
        rows.append(("total", f"{self.entries_moved:,} of {self.entries:,}", "", "", ""))
        text = text_table(rows, total=True)
        if self.buffers:
            text += f"\nBuffers that the pass changed: {listed(self.buffers, _MOST_BUFFERS)}."
        return text

    __repr__ = __str__


def trial_step(model: nn.Module, loss_fn: Callable[[], Tensor], optimizer: Any) -> Trial:
    """Take a real training step, report which entries moved, and restore everything, bit for bit.

    The step is a backward pass that adds to `.grad` (nothing is zeroed) and then `optimizer.step()`. Masks, hooks,
    learning rates, momentum and rounding are the real ones, so the report is exactly what the next step will do.

    Afterwards these are as they were, also when something raises: values (the same tensors, version counters
    included), buffers, gradients, modes, random generators, and everything in the optimizer: state that the step
    created is deleted, and options that it changed have their old values.

    Args:
        model: Its parameters and buffers are compared. One that is compiled, or in a DistributedDataParallel, is
            reported by the names of the module inside.
        loss_fn: Takes no arguments, runs the forward pass, returns the loss: one number.
        optimizer: Anything with `param_groups` and `step`: a torch.optim optimizer, a wrapper around one, or a list of
            them, stepped in order. One that needs a closure (LBFGS, SAM) gets it, and each evaluation starts from
            `.grad` as it was. Optimizers that step in hooks of the backward pass are restored too, listed or not.

    Returns:
        A Trial: for each tensor how many entries moved, in which rows, and how far.

    Raises:
        ProbeError: The loss is not one number, or does not depend on anything that learns.
        TypeError: `model` is not a module, or `optimizer` not an optimizer.
        Exception: Whatever `loss_fn` or a step raises, after everything is restored.

    Cost: a step, and a copy of the parameters, of the optimizer's state, of gradients and buffers while it runs.
        Prints, logs and counters of the user's hooks cannot be undone. Under DistributedDataParallel each process steps
        with its own gradients; under FSDP2 all must call this together, and each reports its own shards.

    Example:
        >>> import frostline as fl
        >>> model = nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 1))
        >>> plan = fl.train_only(model, {"0.weight": fl.rows([3, 4])})
        >>> optimizer = torch.optim.AdamW(plan.parameters(), lr=0.1)
        >>> trial = fl.trial_step(model, lambda: model(torch.tensor([0, 3])).sum(), optimizer)
        >>> trial["0.weight"].entries_moved, trial["0.weight"].rows.tolist(), trial["1.weight"].entries_moved
        (4, [3, 4], 0)
        >>> optimizer.state_dict()["state"]
        {}
    """
    check_model(model)
    check_loss_fn(loss_fn)
    optimizers = check_optimizers(optimizer)
    if not optimizers:
        raise TypeError("optimizer: an empty list, so nothing would step. Pass the optimizer(s) of the training run.")
    plain = unwrapped(model)
    found = find_tensors(plain)
    stepped = [parameter for each in optimizers for group in each.param_groups for parameter in group["params"]]
    parameters = [*model.parameters(), *stepped]
    gradients = {parameter: parameter.grad for parameter in parameters if parameter.grad is not None}
    buffers = dict(plain.named_buffers())
    losses: list[float] = []

    @torch.enable_grad()
    def evaluate() -> Tensor:
        # `restored` has set every `.grad` to None; a copy, so that the backward pass adds to it and not to the user's.
        for parameter in parameters:
            parameter.grad = gradients[parameter].clone() if parameter in gradients else None
        torch.clear_autocast_cache()  # which holds casts of before a step that calls this again
        loss = check_loss(loss_fn())
        if not loss.requires_grad:
            raise ProbeError(
                "loss_fn: the loss does not depend on anything that learns, so backward() cannot run. See fl.explain."
            )
        with own_backward():
            loss.backward()
        losses.append(float(loss.detach()))
        return loss.detach()

    may_step = [*optimizers, *optimizers_in_backward(parameters)]
    with (
        restored([model], function=loss_fn, optimizers=may_step, written=parameters, accumulation_hooks=True) as before,
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        if not all(map(needs_closure, optimizers)):
            evaluate()
        take_step(optimizers, evaluate)
        changes = {tensor.names[0]: _compare(tensor, before) for tensor in found}
        written = written_buffers(plain, buffers, before)
    return Trial(changes, written, losses[0] if losses else None)


def take_step(optimizers: Sequence[Any], evaluate: Callable[[], Any]) -> None:
    """Step every optimizer once, with the gradients in `.grad`, or with the closure `evaluate` if it needs one.

    Args:
        optimizers: Objects with `param_groups` and `step`: any `torch.optim.Optimizer`, wrappers around one.
        evaluate: Computes the loss and its gradients again, and returns the loss. It is called for optimizers whose
            `step` has a `closure` without default (LBFGS), or that raise without one and say so (SAM).
    """
    for optimizer in optimizers:
        if needs_closure(optimizer):
            optimizer.step(evaluate)
            continue
        try:
            optimizer.step()
        except Exception as error:  # SAM's `closure` has the default None; only its message tells that it needs one
            if "closure" not in f"{type(error).__name__} {error}".lower():
                raise
            optimizer.step(evaluate)


def written_buffers(model: nn.Module, buffers: Mapping[str, Tensor], before: Snapshot) -> list[str]:
    """Return the names of buffers whose bits have changed, that are new, or that are gone."""
    now = dict(model.named_buffers())
    return [
        name
        for name in {**buffers, **now}
        if name not in now
        or name not in buffers
        or (buffers[name] in before and not same(before[buffers[name]], now[name]))
    ]


def needs_closure(optimizer: Any) -> bool:
    """Return whether the `step` of an optimizer must be given a closure."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _compare(found: ModelTensor, before: Snapshot) -> EntryChanges:
    """Compare one tensor with its snapshot; both parts of a partial one by the rows and entries of the whole tensor."""
    tally, learns = (
        Tally(found.tensor, whole=found.learned is not None and not is_sharded(found.learned)),
        found.indices,
    )
    if found.learned is not None and learns is not None:
        ids, start = learns.index[0], first_row(found.learned)
        tally.add(before[found.learned], local(found.learned), lambda indices: ids[indices + start])
    if not found.mapped:  # a memory-mapped file is read-only
        # Values of the frozen part at learned positions are ignored by the model, so they are not counted here.
        was, now, first = before[found.tensor], local(found.tensor), first_row(found.tensor)
        if learns is None:
            tally.add(was, now, lambda indices: indices + first)
        elif learns.row_to_slot is not None:
            learned = learns.row_to_slot[first : first + len(now)] >= 0
            tally.add(was, now, lambda indices: indices + first, learned)
        else:  # flat, an entry at a time: a row may have learned entries and frozen ones
            mask, width = torch.zeros(found.tensor.shape, dtype=torch.bool, device=now.device), math.prod(now.shape[1:])
            mask[learns.index] = True
            learned = (mask[shard_slices(found.tensor)] if is_sharded(found.tensor) else mask).reshape(-1)
            tally.add(was.reshape(-1), now.reshape(-1), lambda indices: indices // width + first, learned)
    return tally.result(tuple(found.names[1:]))


def _table_row(name: str, changes: EntryChanges) -> tuple[str, str, str, str, str]:
    name += f" (= {', '.join(changes.tied)})" if changes.tied else ""
    if not changes.entries_moved:
        return name, f"nothing of {changes.entries:,}", "", "", ""
    moved, rows = f"{changes.entries_moved:,} of {changes.entries:,}", f"{len(changes.rows):,} of {changes.num_rows:,}"
    return name, moved, rows, f"{changes.largest:.1e}", f"{changes.median:.1e}"
