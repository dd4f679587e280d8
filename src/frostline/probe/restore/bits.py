"""Compare tensors bit by bit.

Of a DTensor only the shard of this process is compared, without communication.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their size in bytes


def local(tensor: Any) -> Tensor:
    """Return the shard of a DTensor that this process holds, or any other tensor itself; detached."""
    held: Tensor = getattr(tensor, "_local_tensor", tensor)
    return held.detach()


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
    if before.is_sparse:
        return same(before._indices(), after._indices()) and same(before._values(), after._values())
    return before.layout == torch.strided and torch.equal(bits(before), bits(after))
