"""Partial tensors on many processes: read and write their shards, and compare the plans of the processes.

Letters used for shapes in this file:
    V  rows of the tensor         *  the rest of its shape
    R  rows that learn            n  single entries that learn

After FSDP2's `fully_shard` both parts are DTensors: each process holds some rows of the frozen part, and other rows of
the learned one. After tensor parallelism only the frozen part is one (tensor_parallel.py). Indexed writes
(`index_copy_`, `scatter_add_`) into a DTensor silently do nothing, so each process writes into its own shard, at its
own offset. Processes send each other learned values, never a table.

All processes must make the same plan: the same indices, in the same order. DDP and FSDP2 match the learned rows of
several processes by their order alone. If one process chose other rows, or the same in another order (a Python set of
words has a different order in each process), rows would be mixed up silently. So the first forward that all processes
run together compares a digest of the indices, once.
"""

from __future__ import annotations

import hashlib
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from frostline.errors import LearnedFileError, PartialTensorError
from frostline.partial.tensor.indices import LearnedIndices, with_changes
from frostline.partial.tensor.memory import Memory, writable

_CHUNK = 1 << 24  # elements of a sharded tensor that are gathered at a time


def is_sharded(tensor: object) -> bool:
    """Return whether `tensor` is a DTensor, without importing torch.distributed.tensor."""
    return hasattr(tensor, "device_mesh")


def same_memory(a: object, b: Tensor) -> bool:
    """Return whether both tensors are the same memory in this process."""
    if not isinstance(a, Tensor) or is_sharded(a) != is_sharded(b):
        return False
    a, b = (local_part(tensor) if is_sharded(tensor) else tensor for tensor in (a, b))
    return a.numel() > 0 and a.shape == b.shape and a.data_ptr() == b.data_ptr()


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the tensor with all its shards, detached. If it is sharded, every process must call this."""
    if not is_sharded(tensor) or tensor.is_meta:
        return tensor.detach()
    on_mesh: Any = tensor.detach().to(_device_type(tensor))  # CPU-offloaded shards are sent from the model's device
    full: Tensor = on_mesh.full_tensor().to(tensor.device)
    return full


@torch.no_grad()
def scatter_(indices: LearnedIndices, frozen: Tensor, values: Tensor) -> None:
    """Write all `values`, (R, *) or (n,), at the learned indices into this process's shard of `frozen` (V, *)."""
    if not is_sharded(frozen):
        return indices.scatter_(writable(frozen), values)
    inside, index, rest = in_shard(indices.index, frozen)
    own = (slice(None), *rest)
    local_part(frozen)[index] = values[inside][own].to(local_part(frozen))


@torch.no_grad()
def gather(indices: LearnedIndices, frozen: Tensor) -> Tensor:
    """Return the values of `frozen` (V, *) at the learned indices, (R, *) or (n,).

    If `frozen` is sharded, every process must call this.
    """
    if not is_sharded(frozen):
        return indices.gather(frozen)
    inside, index, rest = in_shard(indices.index, frozen)
    local = local_part(frozen)
    values = local.new_zeros(len(indices), *frozen.shape[len(indices.index) :])
    own: tuple[Tensor | slice, ...] = (inside, *rest)
    values[own] = local[index]
    return _sum_bytes(values, frozen)


@torch.no_grad()
def update(indices: LearnedIndices, learned: Tensor, frozen: Tensor) -> None:
    """Copy into `learned` the values of `frozen` that changed, as LearnedIndices does; both may be sharded."""
    if not (is_sharded(frozen) or is_sharded(learned)):
        return indices.update(learned, frozen.detach())
    values = with_changes(full_tensor(learned), gather(indices, frozen))
    if is_sharded(learned):
        local_part(learned).copy_(values[shard_slices(learned)])
    else:
        learned.copy_(values)


def parameter_like(learned: nn.Parameter, values: Tensor) -> nn.Parameter:
    """Return a Parameter with `values`, (R, *) or (n,), in the dtype of `learned` and sharded as it is."""
    values = values.to(learned.dtype)
    if is_sharded(learned):
        from torch.distributed.tensor import distribute_tensor

        dtensor: Any = learned
        values = distribute_tensor(values, dtensor.device_mesh, dtensor.placements)
    return nn.Parameter(values, requires_grad=learned.requires_grad)


@torch.no_grad()
def chunks(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the rows of `tensor` in order, as (first row, copy of some rows on the CPU), never all at once.

    If it is sharded, every process must call this, and gets all rows.
    """
    step = max(1, _CHUNK // max(1, math.prod(tensor.shape[1:])))
    for start in range(0, tensor.shape[0], step):
        stop = min(start + step, tensor.shape[0])
        if is_sharded(tensor):
            rows, *rest = shard_slices(tensor)
            low, high = max(start, rows.start), min(stop, rows.stop)
            chunk = local_part(tensor).new_zeros(stop - start, *tensor.shape[1:])
            if low < high:
                own = (slice(low - start, high - start), *rest)
                chunk[own] = local_part(tensor)[low - rows.start : high - rows.start]
            yield start, _sum_bytes(chunk, tensor).cpu()
        else:
            yield start, tensor.detach()[start:stop].to("cpu", copy=True).contiguous()


def on_one_process(model: nn.Module, call: Callable[[], None]) -> None:
    """Run `call`; for a sharded model only on its first process, while the others wait."""
    meshes: list[Any] = [getattr(tensor, "device_mesh", None) for tensor in model.parameters()]
    mesh = max(filter(None, meshes), key=lambda mesh: mesh.size(), default=None)  # of two dimensions, if any is
    if mesh is None:
        return call()
    error = None
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


def in_shard(index: tuple[Tensor, ...], tensor: Tensor) -> tuple[Tensor, tuple[Tensor, ...], tuple[slice, ...]]:
    """Find the elements at `index` in this process's shard of `tensor`.

    Returns:
        Which of the rows or entries lie in the shard (a mask); their indices there; for rows, the slices of the other
        dimensions that the shard holds.
    """
    index = tuple(each.to(local_part(tensor).device) for each in index)
    held = shard_slices(tensor)
    inside = torch.ones_like(index[0], dtype=torch.bool)
    for each, span in zip(index, held, strict=False):
        inside &= (each >= span.start) & (each < span.stop)
    shifted = tuple(each[inside] - span.start for each, span in zip(index, held, strict=False))
    return inside, shifted, held[len(index) :]


def shard_slices(tensor: Any) -> tuple[slice, ...]:
    """Return the part of the whole tensor that this process holds: one slice for each dimension."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    check_placements(tensor)
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))


def check_placements(tensor: Any) -> None:
    """Raise PartialTensorError unless each process holds one block of `tensor`, a DTensor."""
    from torch.distributed.tensor import Replicate, Shard

    mesh, placements = tensor.device_mesh, tensor.placements
    for dim, placement in enumerate(placements):
        # FSDP2 shards once more, and names it so, what tensor parallelism has sharded along the same dimension.
        inner = [
            mesh.size(i) for i in range(dim + 1, mesh.ndim) if placements[i] == Shard(getattr(placement, "dim", 0))
        ]
        again = type(placement).__name__ == "_StridedShard" and placement.split_factor == math.prod(inner)
        if type(placement) not in (Shard, Replicate) and not again:
            raise PartialTensorError(f"a partial tensor is placed as {placements}; only Shard and Replicate work.")


def local_part(tensor: Any) -> Tensor:
    """Return the shard of a DTensor that this process holds, detached."""
    local: Tensor = tensor.detach().to_local()
    return local


def _sum_bytes(values: Tensor, tensor: Any) -> Tensor:
    """Return the sum of `values` over all processes that share `tensor`: each has zeros where others have values.

    Bytes are summed, not floats: -0.0 + 0.0 would be 0.0, and frozen means every bit.
    """
    if not values.numel():
        return values
    sent = values.to(_device_type(tensor))
    for dim, placement in enumerate(tensor.placements):
        if not placement.is_replicate():
            dist.all_reduce(sent.view(torch.uint8), group=tensor.device_mesh.get_group(dim))
    return sent.to(values.device)


def groups_of(mesh: Any) -> list[Any]:
    """Return the process groups of a DeviceMesh, one for each of its dimensions."""
    return [mesh.get_group(dim) for dim in range(mesh.ndim)]


def _device_type(tensor: Any) -> str:
    """Return the type of device on which the processes of a sharded tensor communicate."""
    return str(tensor.device_mesh.device_type)


_meshes: WeakKeyDictionary[LearnedIndices, Any] = WeakKeyDictionary()  # -> the mesh over which its tensor is sharded
_agreed: WeakKeyDictionary[LearnedIndices, bool] = WeakKeyDictionary()


def note_mesh(indices: LearnedIndices, frozen: Any) -> None:
    """Remember the mesh over which FSDP2 has sharded `frozen`."""
    _meshes[indices] = frozen.device_mesh


def was_sharded(indices: LearnedIndices) -> bool:
    """Return whether FSDP2 has sharded the tensor."""
    return indices in _meshes


def check_agreement(name: str, indices: LearnedIndices, frozen: Tensor, learned: Tensor) -> None:
    """Compare the indices with those of the other processes, in the first forward that all run together.

    Raises:
        PartialTensorError: On every process, if the indices differ; or if DDP was built before the plan, so that it
            would not average the gradients of `learned`.
    """
    if not (dist.is_available() and dist.is_initialized()) or indices in _agreed:
        return
    ddp: Any = nn.parallel.DistributedDataParallel._active_ddp_module
    if ddp is not None and not (ddp.parameters_to_ignore or any(learned is known for known in ddp._module_parameters)):
        raise PartialTensorError(
            f"{name}: its plan is newer than DistributedDataParallel, which knows only the parameters it was built "
            "with. Wrap the model again after train_only."
        )
    if groups := _groups(indices):
        check_same(name, indices, groups, frozen.device)
        _agreed[indices] = True


def check_same(name: str, indices: LearnedIndices, groups: list[Any], device: torch.device) -> None:
    """Raise PartialTensorError on every process of `groups` unless all chose the same indices, in the same order."""
    digest = hashlib.sha256(indices.flat.cpu().numpy().data)
    value = int.from_bytes(digest.digest()[:7], "big")  # 7 bytes: an int64 of which the negative exists too
    extremes = torch.tensor([value, -value], device=device)  # one reduction finds both maximum and minimum
    for group in groups:
        dist.all_reduce(extremes, dist.ReduceOp.MAX, group=group)
    if extremes.tolist() != [value, -value]:
        raise PartialTensorError(
            f"{name}: the processes chose different {indices.kind}, or another order of them, and would mix them up. "
            "Sort the ids, and choose them from the same data (a Python set has another order in every process)."
        )


def _groups(indices: LearnedIndices) -> list[Any]:
    """Return the process groups that run this forward together; empty if that is not certain."""
    ddp: Any = nn.parallel.DistributedDataParallel._active_ddp_module
    if ddp is None:
        mesh = _meshes.get(indices)
        return [] if mesh is None else groups_of(mesh)
    together = torch.is_grad_enabled() and ddp.training and ddp.require_backward_grad_sync
    return [ddp.process_group] if together and not ddp._join_config.enable else []


_sharded_parts: Any = WeakTensorKeyDictionary()  # sharded frozen part -> weak reference to its learned part, memory


def remember_sharded(frozen: Tensor, learned: Tensor, memory: Memory) -> None:
    """Remember which learned part belongs to `frozen`, a sharded Parameter that FSDP2 is given without it."""
    _sharded_parts[frozen] = weakref.ref(learned), memory


def parts_of_sharded(frozen: Tensor | None) -> tuple[nn.Parameter, Memory] | None:
    """Return the learned part and the memory that belong to a sharded frozen part; None if none were remembered."""
    if frozen is None or frozen not in _sharded_parts:
        return None
    reference, memory = _sharded_parts[frozen]
    learned = reference()
    return None if learned is None else (learned, memory)
