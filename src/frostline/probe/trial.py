"""A real training step, what it moved, and everything back as it was.

The idea: no reasoning, only looking. The loss is really differentiated, every optimizer really steps, with all their
hooks, and each entry is compared with what it was, bit by bit. `kept` (keep.py) puts everything back.

One real step of the optimizers, which `kept` (keep.py) takes back.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frostline.errors import ProbeError
from frostline.partial.model_tensors import Found, find_tensors
from frostline.probe.changes import Moved, Tally, first_row
from frostline.probe.inputs import check_loss_fn, check_model, optimizers_in
from frostline.probe.restore.bits import local, same
from frostline.probe.restore.reachable import optimizers_in_backward
from frostline.probe.restore.restored import kept
from frostline.probe.restore.snapshot import Before

_LISTED = 40  # a model with more tensors than this has those that did not move summed up in one line


class Trial:
    """What a step moved. Print it to read it; `trial["embed.weight"]` is one tensor's `Moved`.

    Attributes:
        tensors: Name of each parameter -> what it did, in the model's order. A partial tensor has one entry, under its
            plain name, counted in the whole tensor; tied tensors one, under their first name.
        buffers: Names of the buffers that the pass changed.
        loss: The loss of the step; None if only closures made it.
    """

    def __init__(self, tensors: Mapping[str, Moved], buffers: Sequence[str], loss: float | None) -> None:
        self.tensors = dict(tensors)
        self.buffers = tuple(buffers)
        self.loss = loss

    def __getitem__(self, name: str) -> Moved:
        return self.tensors[name]

    @property
    def moved(self) -> int:
        """Entries that moved, over all tensors."""
        return sum(one.moved for one in self.tensors.values())

    @property
    def of(self) -> int:
        """Entries of all tensors."""
        return sum(one.of for one in self.tensors.values())

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Name of each parameter -> `moved`, `of`, `largest`, `median`, `rows`, `of_rows`, `tied`: plain values."""
        return {name: one.to_dict() for name, one in self.tensors.items()}

    def __str__(self) -> str:
        listed = {name: one for name, one in self.tensors.items() if one.moved or len(self.tensors) <= _LISTED}
        cells = [("tensor", "moved", "rows", "largest", "median")]
        cells += [_cells(name, one) for name, one in listed.items()]
        if len(listed) < len(self.tensors):
            cells.append((f"({len(self.tensors) - len(listed)} more tensors)", "nothing", "", "", ""))
        cells.append(("total", f"{self.moved:,} of {self.of:,}", "", "", ""))
        text = _table(cells)
        if self.buffers:
            more = f" and {len(self.buffers) - 6} more" if len(self.buffers) > 6 else ""
            text += f"\nBuffers that the pass changed: {', '.join(self.buffers[:6])}{more}."
        return text

    __repr__ = __str__


def trial_step(model: nn.Module, loss_fn: Callable[[], Tensor], optimizer: Any) -> Trial:
    """Take a real training step, report which entries moved, and put everything back, bit for bit.

    The step is backward onto `.grad` as it stands (nothing is zeroed) and then `optimizer.step()`. Masks, hooks,
    learning rates, momentum and rounding are the real ones, so this is the truth about what the next step will do.

    Afterwards these are as they were, also when something raises: values (the same tensors, version counters
    included), buffers, gradients, modes, random numbers, and all that the optimizer keeps: state made by the step is
    gone again, and options that it rewrote have their old values.

    Args:
        model: Its parameters and buffers are looked at. The model in a DistributedDataParallel or compiled one stands
            for it.
        loss_fn: Takes nothing, runs the forward pass, returns the loss: one number.
        optimizer: Anything with `param_groups` and `step`: a torch.optim optimizer, a wrapper around one, or a list of
            them, stepped in order. One that needs a closure (LBFGS, SAM) gets it, and each of its evaluations begins
            with `.grad` as it stood. One that steps in hooks of the backward pass is taken back too, listed or not.

    Returns:
        A Trial: for each tensor how many entries moved, in which rows, and how far.

    Raises:
        ProbeError: The loss is not one number, or depends on nothing that learns.
        TypeError: `model` is no module, or `optimizer` no optimizer.
        Exception: Whatever `loss_fn` or a step raises, after everything is back.

    Cost: a step, and a copy of the parameters, of the optimizer's state, of gradients and buffers while it runs.
        Prints, logs and counters of the user's hooks cannot be undone. Under DistributedDataParallel each process steps
        with its own gradients; under FSDP2 all must call this together, and each reports on the shards that it holds.

    Example:
        >>> import frostline as fl
        >>> model = nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 1))
        >>> plan = fl.train_only(model, {"0.weight": fl.rows([3, 4])})
        >>> optimizer = torch.optim.AdamW(plan.parameters(), lr=0.1)
        >>> trial = fl.trial_step(model, lambda: model(torch.tensor([0, 3])).sum(), optimizer)
        >>> trial["0.weight"].moved, trial["0.weight"].rows.tolist(), trial["1.weight"].moved
        (4, [3, 4], 0)
        >>> optimizer.state_dict()["state"]
        {}
    """
    check_model(model)
    check_loss_fn(loss_fn)
    optimizers = optimizers_in(optimizer)
    if not optimizers:
        raise TypeError("optimizer: an empty list, so nothing would step. Pass the optimizer(s) of the training run.")
    plain = unwrapped(model)
    found = find_tensors(plain)
    held = [parameter for one in optimizers for group in one.param_groups for parameter in group["params"]]
    parameters = [*model.parameters(), *held]
    gradients = {parameter: parameter.grad for parameter in parameters if parameter.grad is not None}
    buffers = dict(plain.named_buffers())
    losses: list[float] = []

    @torch.enable_grad()
    def evaluate() -> Tensor:
        for parameter in parameters:
            parameter.grad = gradients[parameter].clone() if parameter in gradients else None
        loss = _checked(loss_fn())
        loss.backward()
        losses.append(float(loss.detach()))
        return loss.detach()

    stepped = [*optimizers, *optimizers_in_backward(parameters)]
    with (
        kept([model], function=loss_fn, optimizers=stepped, written=parameters, accumulation_hooks=True) as before,
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        if not all(map(needs_closure, optimizers)):
            evaluate()
        take_step(optimizers, evaluate)
        tensors = {one.names[0]: _moved(one, before) for one in found}
        written = written_buffers(plain, buffers, before)
    return Trial(tensors, written, losses[0] if losses else None)


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module in one that is compiled or run by DistributedDataParallel."""
    while isinstance(inner := getattr(model, "_orig_mod", None) or _inside_ddp(model), nn.Module):
        model = inner
    return model


def _inside_ddp(model: nn.Module) -> nn.Module | None:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else None


def written_buffers(model: nn.Module, buffers: Mapping[str, Tensor], before: Before) -> list[str]:
    """The names of buffers that are not what they were: those whose bits changed, that are gone, or new."""
    now = dict(model.named_buffers())
    return [
        name
        for name in {**buffers, **now}
        if name not in now
        or name not in buffers
        or (buffers[name] in before and not same(before[buffers[name]], now[name]))
    ]


def _checked(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ProbeError(f"loss_fn: it returned {what}, but it must return the loss, one number. Return `loss.mean()`.")
    if not loss.requires_grad:
        raise ProbeError("loss_fn: the loss depends on nothing that learns, so there is no step. See fl.explain.")
    return loss


def _moved(one: Found, before: Before) -> Moved:
    """Compare one tensor with what it was; a partial one in the rows and entries of the whole tensor."""
    tally, layout = Tally(one.tensor), one.layout
    if one.learned is not None and layout is not None:
        ids, ahead = layout.places[0], first_row(one.learned)
        tally.add(before[one.learned], local(one.learned), lambda places: ids[places + ahead])
    if not one.mapped:  # nothing can move in a file
        was, now, first = before[one.tensor], local(one.tensor), first_row(one.tensor)
        if layout is None:
            tally.add(was, now, lambda places: places + first)
        elif layout.slots is not None:
            learned = layout.slots[first : first + len(now)] >= 0
            tally.add(was, now, lambda places: places + first, learned)
        else:  # an entry at a time: both parts may have entries of one row
            mask, width = torch.zeros(one.tensor.shape, dtype=torch.bool, device=now.device), math.prod(now.shape[1:])
            mask[layout.places] = True
            learned = mask[first : first + len(now)].reshape(-1)
            tally.add(was.reshape(-1), now.reshape(-1), lambda places: places // width + first, learned)
    return tally.moved(tuple(one.names[1:]))


def _cells(name: str, one: Moved) -> tuple[str, str, str, str, str]:
    name += f" (= {', '.join(one.tied)})" if one.tied else ""
    if not one.moved:
        return name, f"nothing of {one.of:,}", "", "", ""
    rows = f"{len(one.rows):,} of {one.of_rows:,}"
    return name, f"{one.moved:,} of {one.of:,}", rows, f"{one.largest:.1e}", f"{one.median:.1e}"


def _table(cells: Iterable[tuple[str, ...]]) -> str:
    rows = list(cells)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def take_step(optimizers: Sequence[Any], evaluate: Callable[[], Any]) -> None:
    """Step every optimizer once: with `.grad` as it stands, or with the closure `evaluate` where one is asked for.

    Args:
        optimizers: Objects with `param_groups` and `step`: any `torch.optim.Optimizer`, wrappers around one.
        evaluate: Makes the loss and its gradients again, and returns the loss. It is called for optimizers whose
            `step` has a `closure` without default (LBFGS), or that refuse to step without one and say so (SAM).
    """
    for optimizer in optimizers:
        if needs_closure(optimizer):
            optimizer.step(evaluate)
            continue
        try:
            optimizer.step()
        except Exception as error:
            if "closure" not in f"{type(error).__name__} {error}".lower():
                raise
            optimizer.step(evaluate)


def needs_closure(optimizer: Any) -> bool:
    """Whether the `step` of `optimizer` cannot be called without a closure that makes the gradients."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
