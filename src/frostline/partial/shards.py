"""What one process holds of a partial tensor that tensor parallelism has split, and of what learns in it.

Every element that learns lies in one shard. The process that holds it computes its gradient, zeros stand for it on the
others, and one sum over them gives all the same bits: what learns cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from frostline.errors import PartialTensorError
from frostline.partial.sharded import in_shard, local_part, shard_slices
from frostline.partial.tensor import PartialTensor
from frostline.partial.tensor.indices import LearnedIndices
from frostline.partial.tensor.memory import Memory


@dataclass(frozen=True)
class Share:
    """What of a partial tensor one process holds.

    Attributes:
        indices: What learns in its shard, counted from the shard's start.
        own: The index of that in the learned part.
        start, stop: The rows of the shard.
        shape: Shape of the shard.
        groups: The process groups over which the tensor is split.
        memory: That of the shard, for a PartialTensor of this process alone.
    """

    indices: LearnedIndices
    own: tuple[Tensor | slice, ...]
    start: int
    stop: int
    shape: torch.Size
    groups: tuple[Any, ...]
    memory: Memory


_shares: WeakKeyDictionary[Memory, tuple[LearnedIndices, Any, Share]] = WeakKeyDictionary()


def share_of(memory: Memory, frozen: Any) -> Share:
    """Return what this process holds of `frozen`, a DTensor; it is found out once."""
    known = _shares.get(memory)
    if known is not None and known[0] is memory.indices and known[1] == frozen.placements:
        return known[2]
    with torch.inference_mode(False), torch.no_grad():
        inside, index, rest = in_shard(memory.indices.index, frozen)
        rows, local = shard_slices(frozen)[0], local_part(frozen)
        if memory.indices.kind == "rows":
            indices = LearnedIndices.from_rows(index[0], len(local), local.device, memory.indices.learn_padding)
        else:
            flat = torch.zeros_like(index[0])
            for each, size in zip(index, local.shape, strict=True):
                flat = flat * size + each
            indices = LearnedIndices(flat, tuple(local.shape), None)
        split = [dim for dim, placement in enumerate(frozen.placements) if not placement.is_replicate()]
        groups = tuple(frozen.device_mesh.get_group(dim) for dim in split)
        own = cast(tuple[Tensor | slice, ...], (inside.nonzero().squeeze(1), *rest))
        share = Share(indices, own, rows.start, rows.stop, local.shape, groups, Memory(indices, memory.looked_up))
    _shares[memory] = memory.indices, frozen.placements, share
    return share


class _OwnPart(torch.autograd.Function):
    """Those elements of the learned part that lie in this process's shard; all processes sum up their gradients."""

    @staticmethod
    def forward(ctx: Any, learned: Tensor, share: Share) -> Tensor:
        ctx.share, ctx.shape = share, learned.shape
        return learned.detach()[share.own]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        share: Share = ctx.share
        whole = gradient.new_zeros(ctx.shape)
        whole[share.own] = gradient
        for group in share.groups:
            dist.all_reduce(whole, group=group)
        return whole, None


own_part: Callable[..., Tensor] = _OwnPart.apply  # now: explain patches `Function.apply` to follow others' Functions


def shard_tensor(name: str, memory: Memory, local: Tensor, learned: Tensor) -> PartialTensor:
    """Return `local`, this process's shard of a frozen part, as a PartialTensor of this process alone.

    Of its gradient every process gets the sum.
    """
    known = _shares.get(memory)
    if known is None or known[2].shape != local.shape:
        shape = tuple(local.shape)
        raise PartialTensorError(
            f"{name}: a tensor of shape {shape} is in the place of its shard. Merge, then plan again."
        )
    own = own_part(learned, known[2])
    return PartialTensor.stand_in(local, own, known[2].memory)
