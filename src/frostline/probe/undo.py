"""One thing as it is now, and the function that puts it back: the same object, with the same bits.

    values      a tensor's numbers, memory and version counter
    gradient    what a leaf has beside its values: `.grad`, `requires_grad`, hooks
    items       what a container holds; `refill` puts it back
(Random generators are in randomness.py.) Nothing is written where nothing has changed: memory may be read-only.

Version counters matter: a buffer that is written and put back has its old bits but a new count, and the backward of a
step that is under way would refuse it.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, MutableSet
from operator import is_
from typing import Any

import torch
from torch import Tensor

from frostline.probe.bits import bits

_ACCUMULATION = "_post_accumulate_grad_hooks"
_HOOKS = ("_backward_hooks", _ACCUMULATION)


def values(tensor: Tensor) -> tuple[Tensor, Callable[[], object]]:
    """A copy of what this process holds of a tensor, of the same shape and dtype; and what puts it back."""
    held = getattr(tensor, "_local_tensor", tensor)  # a shard of a DTensor
    with torch.inference_mode(held.is_inference()):
        # The same memory, also if the tensor is given another; a sparse tensor gets another at any write.
        alias = held.detach() if held.layout == torch.strided else held
        copy = _stored(alias).clone()
    counts = version(tensor), version(held)

    def undo() -> None:
        with torch.inference_mode(alias.is_inference()):
            if alias is not held and _place(held) != _place(alias):
                held.data = alias
            if not (alias.is_meta or _same(_stored(alias), copy)):
                _stored(alias).copy_(copy)
        for one, count in zip((tensor, held), counts, strict=True):
            if count is not None and one._version != count:
                torch._C._autograd._unsafe_set_version_counter((one,), (count,))

    return copy.expand(alias.shape) if copy.shape != alias.shape else copy, undo


def version(tensor: Tensor) -> int | None:
    """How often a tensor was written to; None for one made under inference_mode, which does not count."""
    return None if tensor.is_inference() else tensor._version


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, None if tensor.is_meta else tensor.data_ptr()


def _same(now: Tensor, copy: Tensor) -> bool:
    if now.layout != torch.strided or not now.is_cpu:
        return False  # on a GPU comparing would wait for it; writing does not
    return torch.equal(bits(now), bits(copy))


def _stored(tensor: Tensor) -> Tensor:
    """The part of an expanded tensor that has memory of its own; any other tensor whole."""
    if tensor.layout != torch.strided or 0 not in tensor.stride():
        return tensor
    return tensor[tuple(slice(0, 1) if step == 0 else slice(None) for step in tensor.stride())]


def gradient(leaf: Tensor, accumulation_hooks: bool) -> Callable[[], object]:
    """Take `.grad` of a leaf out of sight; what puts it back, and `requires_grad` and hooks with it.

    Its accumulation hooks go out of sight, too, unless they are to run: some step an optimizer.
    """
    kept, requires_grad = leaf.grad, leaf.requires_grad
    hooks = {name: dict(getattr(leaf, name, None) or {}) for name in _HOOKS}
    leaf.grad = None
    if hooks[_ACCUMULATION] and not accumulation_hooks:
        getattr(leaf, _ACCUMULATION).clear()

    def undo() -> None:
        if leaf.grad is not kept:
            leaf.grad = kept
        if leaf.requires_grad != requires_grad:
            leaf.requires_grad_(requires_grad)
        for name, before in hooks.items():
            if (now := getattr(leaf, name, None)) is not None:
                refill(now, before)  # never replaced: autograd holds this very dict

    return undo


def items(container: Any) -> dict[Any, Any] | list[Any]:
    """A copy of what a dict, list, set, deque or the like holds, for `refill`."""
    return dict(container) if isinstance(container, (dict, MutableMapping)) else list(container)


def refill(container: Any, before: dict[Any, Any] | list[Any]) -> None:
    """Put back the objects that a container held, in their order."""
    if (
        len(container) == len(before)
        and all(map(is_, container, before))
        and (isinstance(before, list) or all(map(is_, container.values(), before.values())))
    ):
        return
    container.clear()
    if isinstance(before, dict):
        container.update(before)
    elif isinstance(container, MutableSet):
        for one in before:
            container.add(one)
    else:
        container.extend(before)
