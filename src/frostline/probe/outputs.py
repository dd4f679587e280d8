"""Tensors inside a pass: the output of each call of a module, and tensors that the forward marks by a name.

The idea: whoever wants the gradient of such a tensor, or to add to it, names where it is made; a function then sees it
when it is made, and may pass another on in its place. A module is seen by a forward hook, a mark where it stands.

A checkpoint computes a part of the forward again in the backward pass, later parts first. Where the module is called
once, that is its one call; where it is called several times, which of them it is cannot be told.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Output = nn.Module | str | tuple[nn.Module | str, int]
"""All calls of a module, all tensors marked with a name, or one of them: `(module, 0)` is the first."""

Observer = Callable[[int | None, Any], Any]
"""Gets the index of a call (None: a checkpoint repeats one of several) and its output; returns what is passed on."""


class _Marks(threading.local):
    """The observers of each name, in this thread."""

    def __init__(self) -> None:
        self.observers: dict[str, list[Callable[[Tensor], Tensor]]] = {}


_marks = _Marks()


def mark(x: Tensor, name: str) -> Tensor:
    """Return `x` itself; `fl.gradients`, `perturb` and `loss` can then be asked for it by `name`.

    Args:
        x: A tensor in a forward pass, any shape.
        name: Any text. A name that is met several times in a pass counts its tensors from 0: `("hidden", 0)`.

    Returns:
        `x`. Compiled code contains nothing of the mark.

    Cost: a lookup in a dictionary.

    Example:
        >>> import frostline as fl
        >>> x = torch.tensor([1.0, 2.0])
        >>> fl.gradients(lambda: fl.mark(3 * x, "hidden").square().sum(), ["hidden"])
        (tensor([ 6., 12.]),)
    """
    if torch.compiler.is_compiling():
        return x
    for observer in _marks.observers.get(name, ()):
        x = observer(x)
    return x


@contextlib.contextmanager
def observing(target: nn.Module | str, observe: Observer) -> Iterator[None]:
    """Pass every output of `target` that is made in the block through `observe`. Compiled code must run eagerly."""
    calls = 0

    def call(output: Any) -> Any:
        nonlocal calls
        if torch._C._current_graph_task_id() >= 0:  # in a backward pass, so a checkpoint repeats a call
            return observe(0 if calls == 1 else None, output)
        calls += 1
        return observe(calls - 1, output)

    if isinstance(target, nn.Module):
        with target.register_forward_hook(lambda module, inputs, output: call(output)):
            yield
        return
    observers = _marks.observers.setdefault(target, [])
    observers.append(call)
    try:
        yield
    finally:
        observers.remove(call)


def place(target: Output) -> tuple[nn.Module | str, int | None]:
    """Return the module or name of `target`, and the index of the call, None for all calls.

    Raises:
        TypeError: It is none of these.
        ValueError: The index is negative.
    """
    where, call = target if isinstance(target, tuple) and len(target) == 2 else (target, None)
    if not isinstance(where, nn.Module | str) or isinstance(call, bool) or not isinstance(call, int | None):
        raise TypeError(
            "it must be a tensor, a module, the name of a mark, or one of the two with a call: (module, 0)."
        )
    if call is not None and call < 0:
        raise ValueError(f"call {call}: calls are counted from 0, in the order in which the pass makes them.")
    return where, call


def described(target: Output) -> str:
    """Return `target` as messages name it.

    Example:
        >>> described((nn.Embedding(2, 2), 1)), described("hidden")
        ('Embedding, call 1', "mark 'hidden'")
    """
    where, call = place(target)
    name = type(where).__name__ if isinstance(where, nn.Module) else f"mark {where!r}"
    return name if call is None else f"{name}, call {call}"
