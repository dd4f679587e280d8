"""The values of one tensor, saved and restored: bits, memory and version counter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from frostline.probe.restore.bits import bits, inner_tensors


def save_values(tensor: Tensor) -> tuple[Tensor, Callable[[], object]]:
    """Return a copy of what this process holds of a tensor, same shape and dtype, and a function that restores it."""
    if inner := inner_tensors(tensor):  # a wrapper of others, such as a quantized weight, has no memory of its own
        return tensor.detach().clone(), partial(_call_all, [save_values(each)[1] for each in inner])
    held = getattr(tensor, "_local_tensor", tensor)  # the shard of a DTensor
    with torch.inference_mode(held.is_inference()):
        # An alias keeps the memory although `tensor.data` may be replaced; a sparse tensor has new memory at any write.
        alias = held.detach() if held.layout == torch.strided else held
        copy = _without_expanded(alias).clone()
    versions = version_of(tensor), version_of(held)

    def restore() -> None:
        with torch.inference_mode(alias.is_inference()):
            if alias is not held and _memory(held) != _memory(alias):
                held.data = alias
            if not (alias.is_meta or _unchanged(_without_expanded(alias), copy)):
                _without_expanded(alias).copy_(copy)
        for written, version in zip((tensor, held), versions, strict=True):
            if version is not None and written._version != version:
                torch._C._autograd._unsafe_set_version_counter((written,), (version,))

    return copy.expand(alias.shape) if copy.shape != alias.shape else copy, restore


def version_of(tensor: Tensor) -> int | None:
    """Return how often a tensor was written to; None for one made under inference_mode, which does not count."""
    return None if tensor.is_inference() else tensor._version


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, None if tensor.is_meta else tensor.data_ptr()


def _unchanged(now: Tensor, copy: Tensor) -> bool:
    if now.layout != torch.strided or not now.is_cpu:
        return False  # on a GPU comparing would wait for it; writing does not
    return torch.equal(bits(now), bits(copy))


def _without_expanded(tensor: Tensor) -> Tensor:
    """Return `tensor` with expanded dimensions (stride 0) cut to length 1: they share memory, so cannot be written."""
    if tensor.layout != torch.strided or 0 not in tensor.stride():
        return tensor
    return tensor[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())]


def _call_all(functions: Iterable[Callable[[], object]]) -> None:
    for function in functions:
        function()
