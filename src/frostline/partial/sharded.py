"""Parts that FSDP2 has spread over processes: what stands at learned places, written and read shard by shard.

Letters used for shapes in this file:
    V  rows of the tensor         *  the rest of its shape
    R  rows that learn            n  single entries that learn

After `fully_shard` both parts are DTensors: each process holds some rows of the frozen part, and other rows of the
learned one. Indexed writes (`index_copy_`, `index_add_`, `scatter_add_`) into a DTensor silently do nothing, so each
process writes into its own shard, at its own offset. What is sent between processes is what learns, never a table.

All processes have to make the same plan: the same places, in the same order.

DDP and FSDP2 put learned rows of several processes together by their order alone. Where the processes chose other rows,
or another order of them (a Python set of words has one of its own in each), rows would be mixed up, silently. So the
first forward that all processes make together compares a digest of the places, once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn

from frostline.errors import LearnedFileError, PartialTensorError
from frostline.partial.indices import Layout, with_news, writable

_CHUNK = 1 << 24  # numbers of a sharded tensor put together at a time


def is_sharded(tensor: object) -> bool:
    """Whether `tensor` is a DTensor, told without importing torch.distributed.tensor."""
    return hasattr(tensor, "device_mesh")


def same_memory(one: object, other: Tensor) -> bool:
    """Whether what this process holds of both tensors is the same memory."""
    if not isinstance(one, Tensor) or is_sharded(one) != is_sharded(other):
        return False
    mine, theirs = (_local(tensor) if is_sharded(tensor) else tensor for tensor in (one, other))
    return mine.numel() > 0 and mine.shape == theirs.shape and mine.data_ptr() == theirs.data_ptr()


def whole(tensor: Tensor) -> Tensor:
    """The tensor with all its shards, without its graph. If it is sharded, every process must ask."""
    if not is_sharded(tensor) or tensor.is_meta:
        return tensor.detach()
    there: Any = tensor.detach().to(_where(tensor))  # offloaded shards are sent from where the model computes
    full: Tensor = there.full_tensor().to(tensor.device)
    return full


@torch.no_grad()
def put(layout: Layout, frozen: Tensor, values: Tensor) -> None:
    """Write `values`, (R, *) or (n,), whole, into this process's shard of `frozen` (V, *), at the learned places."""
    if not is_sharded(frozen):
        return layout.put(writable(frozen), values)
    inside, index, rest = _here(layout, frozen)
    own = (slice(None), *rest)
    _local(frozen)[index] = values[inside][own].to(_local(frozen))


@torch.no_grad()
def take(layout: Layout, frozen: Tensor) -> Tensor:
    """What stands in `frozen` (V, *) at the learned places, (R, *) or (n,). Sharded: every process must ask."""
    if not is_sharded(frozen):
        return layout.take(frozen)
    inside, index, rest = _here(layout, frozen)
    local = _local(frozen)
    found = local.new_zeros(len(layout), *frozen.shape[len(layout.places) :])
    own: tuple[Tensor | slice, ...] = (inside, *rest)
    found[own] = local[index]
    return _sum_bytes(found, frozen)


@torch.no_grad()
def update(layout: Layout, learned: Tensor, frozen: Tensor) -> None:
    """Take into `learned` what is new in `frozen`; as `Layout.update` does, for parts that may be sharded."""
    if not (is_sharded(frozen) or is_sharded(learned)):
        return layout.update(learned, frozen.detach())
    fill(learned, with_news(whole(learned), take(layout, frozen)))


@torch.no_grad()
def fill(tensor: Tensor, values: Tensor) -> None:
    """Write the whole `values` into `tensor`, each process into its own shard."""
    if is_sharded(tensor):
        _local(tensor).copy_(values[_region(tensor)])
    else:
        tensor.copy_(values)


def like(learned: nn.Parameter, values: Tensor) -> nn.Parameter:
    """A Parameter with `values`, (R, *) or (n,), in the dtype of `learned` and sharded as it is."""
    values = values.to(learned.dtype)
    if is_sharded(learned):
        from torch.distributed.tensor import distribute_tensor

        sharded: Any = learned
        values = distribute_tensor(values, sharded.device_mesh, sharded.placements)
    return nn.Parameter(values, requires_grad=learned.requires_grad)


@torch.no_grad()
def chunks(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The rows of `tensor` in order, as (first row, copy of some rows on the CPU), never all at once.

    If it is sharded, every process must ask, and gets them all.
    """
    step = max(1, _CHUNK // max(1, math.prod(tensor.shape[1:])))
    for start in range(0, tensor.shape[0], step):
        stop = min(start + step, tensor.shape[0])
        if is_sharded(tensor):
            rows, *rest = _region(tensor)
            low, high = max(start, rows.start), min(stop, rows.stop)
            chunk = _local(tensor).new_zeros(stop - start, *tensor.shape[1:])
            if low < high:
                own = (slice(low - start, high - start), *rest)
                chunk[own] = _local(tensor)[low - rows.start : high - rows.start]
            yield start, _sum_bytes(chunk, tensor).cpu()
        else:
            yield start, tensor.detach()[start:stop].to("cpu", copy=True).contiguous()


def on_one_process(model: nn.Module, call: Callable[[], None]) -> None:
    """`call()`; for a sharded model on its first process only, and done when any process goes on."""
    tensor: Any = next(filter(is_sharded, model.parameters()), None)
    if tensor is None:
        return call()
    mesh, error = tensor.device_mesh, None
    if not any(mesh.get_coordinate()):
        try:
            call()
        except Exception as problem:
            error = problem
    failed = torch.tensor([error is not None], dtype=torch.int32, device=mesh.device_type)
    for dim in range(mesh.ndim):
        dist.all_reduce(failed, dist.ReduceOp.MAX, group=mesh.get_group(dim))
    if error is not None:
        raise error
    if failed:
        raise LearnedFileError("the first process could not write the file; its error says why.")


def _here(layout: Layout, tensor: Tensor) -> tuple[Tensor, tuple[Tensor, ...], tuple[slice, ...]]:
    """Which of the learned places lie in this process's shard of `tensor`, where there, and its part of their rows."""
    layout = layout.to(_local(tensor).device)
    region = _region(tensor)
    inside = torch.ones(len(layout), dtype=torch.bool, device=layout.places[0].device)
    for place, span in zip(layout.places, region, strict=False):
        inside &= (place >= span.start) & (place < span.stop)
    index = tuple(place[inside] - span.start for place, span in zip(layout.places, region, strict=False))
    return inside, index, region[len(layout.places) :]


def _region(tensor: Any) -> tuple[slice, ...]:
    """The part of the whole tensor that this process holds: one slice a dimension."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if any(type(placement) not in (Shard, Replicate) for placement in tensor.placements):
        raise PartialTensorError(f"a partial tensor is placed as {tensor.placements}; only Shard and Replicate work.")
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))


def _local(tensor: Any) -> Tensor:
    local: Tensor = tensor.detach().to_local()
    return local


def _sum_bytes(values: Tensor, tensor: Any) -> Tensor:
    """`values` with what every shard of `tensor` holds, zeros elsewhere, put together: byte by byte, so -0.0 stays."""
    if not values.numel():
        return values
    sent = values.to(_where(tensor))
    for dim, placement in enumerate(tensor.placements):
        if placement.is_shard():
            dist.all_reduce(sent.view(torch.uint8), group=tensor.device_mesh.get_group(dim))
    return sent.to(values.device)


def _where(tensor: Any) -> str:
    """The kind of device between which the processes of a sharded tensor send."""
    return str(tensor.device_mesh.device_type)


_meshes: WeakKeyDictionary[Layout, Any] = WeakKeyDictionary()  # layout of a sharded tensor -> where it is sharded
_agreed: WeakKeyDictionary[Layout, bool] = WeakKeyDictionary()


def shared_over(layout: Layout, frozen: Any) -> None:
    """Note over which processes FSDP2 has shared out `frozen`."""
    _meshes[layout] = frozen.device_mesh


def check_agreement(name: str, layout: Layout, frozen: Tensor, learned: Tensor) -> None:
    """Compare the places with the other processes', if this is a forward that all make and the first of them.

    Raises:
        PartialTensorError: They are not the same; or DDP was built before the plan, and nobody would average the
            gradients of `learned`; on every process.
    """
    if not (dist.is_available() and dist.is_initialized()) or layout in _agreed:
        return
    ddp: Any = nn.parallel.DistributedDataParallel._active_ddp_module
    if ddp is not None and not (ddp.parameters_to_ignore or any(learned is one for one in ddp._module_parameters)):
        raise PartialTensorError(
            f"{name}: its plan is newer than DistributedDataParallel, which knows only the parameters it was built "
            "with. Wrap the model again after train_only."
        )
    groups = _groups(layout)
    if not groups:
        return
    digest = hashlib.sha256()
    for place in layout.places:
        digest.update(place.cpu().numpy().data)
    number = int.from_bytes(digest.digest()[:7], "big")
    extremes = torch.tensor([number, -number], device=frozen.device)
    for group in groups:
        dist.all_reduce(extremes, dist.ReduceOp.MAX, group=group)
    if extremes.tolist() != [number, -number]:
        raise PartialTensorError(
            f"{name}: the processes chose different {layout.kind}, or another order of them, and would mix them up. "
            "Sort the ids, and choose them from the same data (a Python set has another order in every process)."
        )
    _agreed[layout] = True


def _groups(layout: Layout) -> list[Any]:
    """The groups of processes that take part in this forward; empty if that is not certain."""
    ddp: Any = nn.parallel.DistributedDataParallel._active_ddp_module
    if ddp is None:
        mesh = _meshes.get(layout)
        return [] if mesh is None else [mesh.get_group(dim) for dim in range(mesh.ndim)]
    together = torch.is_grad_enabled() and ddp.training and ddp.require_backward_grad_sync
    return [ddp.process_group] if together and not ddp._join_config.enable else []
