"""One real optimizer step that can be looked at and then never happened.

The idea: an optimizer's step may change the tensors it holds and anything that the optimizer itself keeps: state made
at the first step, counters, options in `param_groups`, an attribute that a scheduler looks at, a base optimizer inside
a wrapper. `taken_back` walks through all of it first, and puts every bit back in the very objects it was found in.

    with taken_back(optimizers, tensors) as before:
        take_step(optimizers, evaluate)
        moved = [changed(before[tensor], tensor).sum() for tensor in tensors]

What a forward and backward change (gradients, buffers, random generators) is the business of keep.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, MutableMapping, MutableSequence, MutableSet, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_LEFT_ALONE = (bool, int, float, complex, str, bytes, type, ModuleType, nn.Module)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def local(tensor: Any) -> Tensor:
    """The shard of a DTensor that this process holds, without a word to others; any other tensor itself. Detached."""
    held: Tensor = getattr(tensor, "_local_tensor", tensor)
    return held.detach()


def bits(tensor: Tensor) -> Tensor:
    """The bits of `tensor` (*) as integers of the same size, sharing its memory; complex numbers as two, (*, 2)."""
    tensor = local(tensor)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.view(_BITS[tensor.element_size()])


def changed(before: Tensor, after: Tensor) -> Tensor:
    """Where `after` (*) differs from `before` (*) in any bit: bool, shape (*). The same NaN is no difference."""
    differs = bits(before) != bits(after)
    return differs.any(-1) if before.is_complex() else differs


class Before:
    """The values that tensors had: `before[tensor]` is a copy, shape and dtype of `tensor`."""

    def __init__(self) -> None:
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    def __getitem__(self, tensor: Tensor) -> Tensor:
        return self._copies[id(tensor)][1]

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._copies

    def add(self, tensor: Tensor) -> None:
        """Remember the values of `tensor`."""
        self._copies[id(tensor)] = tensor, tensor.detach().clone()


@contextmanager
def taken_back(optimizers: Sequence[Any], tensors: Iterable[Tensor] = ()) -> Iterator[Before]:
    """Let anything happen to `optimizers` and `tensors`; when the block ends, or raises, they are as they were.

    Args:
        optimizers: Objects with `param_groups` and `step`: any `torch.optim.Optimizer`, wrappers around one.
        tensors: More tensors whose values are put back, such as the parameters of a model. Those that the optimizers
            hold are put back anyway.

    Returns:
        A context manager that yields the values before: `before[tensor]` for every tensor given or held.

    Cost: a copy of all these tensors and of the optimizers' state while the block runs. Nothing is written at the end
        to a tensor whose bits are the same, so tensors in read-only memory are safe.
    """
    before, undo, seen = Before(), list[Callable[[], object]](), dict[int, object]()
    for tensor in tensors:
        _remember(tensor, before, undo, seen)
    for optimizer in optimizers:
        _remember(vars(optimizer), before, undo, seen)
    with ExitStack() as stack:  # one that fails does not stop the others
        for put_back in undo:
            stack.callback(put_back)
        yield before


def take_step(optimizers: Sequence[Any], evaluate: Callable[[], Any]) -> None:
    """Step every optimizer once: with `.grad` as it stands, or with the closure `evaluate` where one is asked for.

    Args:
        optimizers: As in `taken_back`, in which this must run.
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


def _remember(value: Any, before: Before, undo: list[Callable[[], object]], seen: dict[int, object]) -> None:
    """Add to `undo` what puts `value`, and everything it holds, back to what it is now."""
    if id(value) in seen or value is None or isinstance(value, _LEFT_ALONE):
        return
    seen[id(value)] = value
    children: Iterable[Any] = ()
    if isinstance(value, Tensor):
        before.add(value)
        version = None if value.is_inference() else value._version
        undo.append(partial(_put_back_tensor, value, value.data, before[value], version))
    elif isinstance(value, np.ndarray) and value.flags.writeable:
        undo.append(partial(np.copyto, value, value.copy()))
    elif isinstance(value, torch.Generator):
        undo.append(partial(value.set_state, value.get_state()))
    elif isinstance(value, MutableMapping):
        children = list(value.values())
        undo.append(partial(_put_back_mapping, value, dict(value)))
    elif isinstance(value, MutableSequence):
        children = list(value)
        undo.append(partial(_put_back_sequence, value, list(value)))
    elif isinstance(value, MutableSet):
        undo.append(partial(_put_back_set, value, set(value)))
    elif isinstance(value, tuple):
        children = value
    elif hasattr(value, "param_groups") or (hasattr(value, "__dict__") and not callable(value)):
        children = [vars(value)]
    for child in children:
        if not isinstance(child, MethodType):
            _remember(child, before, undo, seen)


@torch.no_grad()
def _put_back_tensor(tensor: Tensor, data: Tensor, values: Tensor, version: int | None) -> None:
    if tensor.layout != torch.strided:  # `data` shares no memory that could be written to
        tensor.copy_(values)
    else:
        if tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape or tensor.dtype != data.dtype:
            tensor.data = data
        if not torch.equal(bits(data), bits(values)):
            local(data).copy_(local(values))
    if version is not None:
        torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))


def _put_back_mapping(mapping: MutableMapping[Any, Any], items: dict[Any, Any]) -> None:
    if list(map(id, mapping)) != list(map(id, items)) or any(mapping[key] is not items[key] for key in items):
        mapping.clear()
        mapping.update(items)


def _put_back_sequence(sequence: Any, items: list[Any]) -> None:
    if list(map(id, sequence)) != list(map(id, items)):
        sequence.clear()
        sequence.extend(items)


def _put_back_set(values: MutableSet[Any], items: set[Any]) -> None:
    if values != items:
        values.clear()
        for item in items:
            values.add(item)
