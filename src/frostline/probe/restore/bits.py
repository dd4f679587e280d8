"""The bits of a tensor, compared.

Of a DTensor they are those of the shard that this process holds, without a word to others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def local(tensor: Any) -> Tensor:
    """The shard of a DTensor that this process holds; any other tensor itself. Detached."""
    held: Tensor = getattr(tensor, "_local_tensor", tensor)
    return held.detach()


def bits(tensor: Tensor) -> Tensor:
    """The bits of `tensor` (*) as integers of the same size, sharing its memory; complex numbers as two, (*, 2)."""
    tensor = local(tensor)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.view(_OF_SIZE[tensor.element_size()])


def changed(before: Tensor, after: Tensor) -> Tensor:
    """Where `after` (*) differs from `before` (*) in any bit: bool, shape (*). The same NaN is no difference."""
    differs = bits(before) != bits(after)
    return differs.any(-1) if before.is_complex() else differs


def same(before: Tensor, after: Tensor) -> bool:
    """Whether `after` has the shape, dtype, layout and bits of `before`."""
    before, after = local(before), local(after)
    if (before.shape, before.dtype, before.layout) != (after.shape, after.dtype, after.layout):
        return False
    if before.is_sparse:
        return same(before._indices(), after._indices()) and same(before._values(), after._values())
    return before.layout == torch.strided and torch.equal(bits(before), bits(after))
