"""Compare tensors bit by bit.

Of a DTensor only the shard of this process is compared, without communication.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their size in bytes


def local(tensor: Any) -> Tensor:
    """Return the shard of a DTensor that this process holds, or any other tensor itself; detached."""
    held: Tensor = getattr(tensor, "_local_tensor", tensor)
    return held.detach()


def inner_tensors(tensor: Tensor) -> list[Tensor]:
    """Return the tensors that one of a wrapper class (a quantized weight) is made of; none for all others.

    A DTensor is not counted: what a process holds of it is `local`.
    """
    if type(tensor) in (Tensor, torch.nn.Parameter) or hasattr(tensor, "_local_tensor"):
        return []
    inner: Any = tensor.data if type(tensor) is torch.nn.Parameter else tensor
    if not is_traceable_wrapper_subclass(inner):
        return []
    return [getattr(inner, name) for name in inner.__tensor_flatten__()[0]]


def storage_address(tensor: Tensor) -> int:
    """Return the address of the memory that a tensor lies in, of a wrapper that of its first part; 0 without any."""
    with torch._C.DisableTorchFunction():
        if inner := inner_tensors(tensor):
            return storage_address(inner[0])
        try:
            return local(tensor).untyped_storage().data_ptr()
        except (RuntimeError, NotImplementedError):
            return 0


def is_freed(tensor: Tensor) -> bool:
    """Return whether the memory of a strided tensor is gone, as that of a parameter which FSDP gathers and frees."""
    if tensor.layout != torch.strided or inner_tensors(tensor):
        return False
    try:
        return local(tensor).untyped_storage().nbytes() == 0 < local(tensor).numel()
    except (RuntimeError, NotImplementedError):
        return False


def bits(tensor: Tensor) -> Tensor:
    """Return the bits of `tensor` (*) as integers in the same memory; of complex numbers as two each, (*, 2)."""
    tensor = local(tensor)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.view(_INTEGERS[tensor.element_size()])


def changed(before: Tensor, after: Tensor) -> Tensor:
    """Return where `after` (*) differs from `before` (*) in any bit: bool, shape (*). The same NaN is equal."""
    differs = bits(before) != bits(after)
    return differs.any(-1) if before.is_complex() else differs


def same(before: Tensor, after: Tensor) -> bool:
    """Return whether `after` has the shape, dtype, layout and bits of `before`."""
    before, after = local(before), local(after)
    if (before.shape, before.dtype, before.layout) != (after.shape, after.dtype, after.layout):
        return False
    if inner := inner_tensors(before):
        others = inner_tensors(after)
        return len(inner) == len(others) and all(map(same, inner, others))
    if before.is_sparse:
        return same(before._indices(), after._indices()) and same(before._values(), after._values())
    return before.layout == torch.strided and torch.equal(bits(before), bits(after))
