"""The tensors of a state: of a live model here, of a file in checkpoints.py. Both are listed in the same way.

A state is what `state_dict()` has: parameters and persistent buffers. Memory under several names is one tensor, with
the first name in the order of `state_dict()`; values that are not tensors are left out. Names are those of the model
itself, whatever DistributedDataParallel or `torch.compile` wrap around it.

If FSDP2 or tensor parallelism has sharded a model, each process lists the part of each tensor that it holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frostline.changes.one_pass import bits_of
from frostline.errors import CheckpointError
from frostline.partial.arguments import check_model
from frostline.partial.sharded import is_sharded


@dataclass(frozen=True, eq=False)
class StateTensor:
    """One tensor of a state.

    Attributes:
        names: Its names, the first one first.
        dtype: Its dtype.
        shape: Its shape, over all processes.
        read: Returns what this process holds of it; from a file, it is read or mapped then.
        held: If it is sharded, the part that this process holds: a slice for each dimension.
        live: The tensor of a model itself, to write to.
        release: Gives back the memory of what `read` returned, where it is mapped.
    """

    names: tuple[str, ...]
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    held: tuple[slice, ...] | None = None
    live: Tensor | None = None
    release: Callable[[Tensor], None] = lambda tensor: None

    @property
    def name(self) -> str:
        """Its first name."""
        return self.names[0]

    @property
    def numel(self) -> int:
        """How many entries it has, over all processes."""
        return math.prod(self.shape)

    @property
    def row_size(self) -> int:
        """Entries of a row: of one index of dimension 0; a tensor without dimensions is one row."""
        return math.prod(self.shape[1:])

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.numel * self.dtype.itemsize

    def bits(self) -> Tensor:
        """Return the bits of what this process holds, in the order of flat indices: (n,), or (n, 2) of complex128."""
        values = self.read().resolve_conj().resolve_neg()
        return bits_of(values.contiguous())

    def global_index(self, index: Tensor) -> Tensor:
        """Return the flat indices in the whole tensor of flat indices in what this process holds."""
        if self.held is None:
            return index
        if self._whole_rows():
            return index + int(self.held[0].start) * self.row_size
        sizes = [span.stop - span.start for span in self.held]
        coordinates = torch.unravel_index(index, sizes)
        shifted = torch.zeros_like(index)
        for coordinate, span, size in zip(coordinates, self.held, self.shape, strict=True):
            shifted = shifted * size + coordinate + span.start
        return shifted

    def local_index(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return which of the flat indices in the whole tensor this process holds, a mask, and where it holds them."""
        if self.held is None:
            return torch.ones_like(index, dtype=torch.bool), index
        inside = torch.ones_like(index, dtype=torch.bool)
        local = torch.zeros_like(index)
        for coordinate, span in zip(torch.unravel_index(index, self.shape), self.held, strict=True):
            inside &= (coordinate >= span.start) & (coordinate < span.stop)
            local = local * (span.stop - span.start) + coordinate - span.start
        return inside, local[inside]

    def _whole_rows(self) -> bool:
        assert self.held is not None
        return all((span.start, span.stop) == (0, n) for span, n in zip(self.held[1:], self.shape[1:], strict=True))

    def first_index(self) -> int | None:
        """Return the flat index of the first entry held, if those held follow each other in the whole tensor."""
        if self.held is None or not self.held:
            return 0
        return self.held[0].start * self.row_size if self._whole_rows() else None


State = Mapping[str, StateTensor]  # first name -> tensor, in the order of `state_dict()`


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel, DataParallel and `torch.compile`."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def live_state(model: nn.Module) -> State:
    """Return the tensors of a model as they are now. If it is sharded, every process must call this.

    Raises:
        CheckpointError: A tensor has no bits that could be compared: sparse, quantized, on the meta device.
    """
    check_model(model)
    found: dict[object, tuple[list[str], Tensor]] = {}
    for name, tensor in unwrapped(model).state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            check_plain(name, tensor)
            found.setdefault(identity(tensor), ([], tensor))[0].append(name)
    return {names[0]: _live(tuple(names), tensor) for names, tensor in found.values()}


def identity(tensor: Tensor) -> object:
    """Return the same for tensors that are one memory under several names."""
    if is_sharded(tensor) or tensor.numel() == 0:
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device


def check_plain(name: str, tensor: Tensor) -> None:
    """Raise CheckpointError for a tensor that is not an array of numbers."""
    wraps = hasattr(tensor, "__tensor_flatten__") and not is_sharded(tensor)
    problem = (
        f"a sparse tensor ({tensor.layout})"
        if tensor.layout != torch.strided
        else "on the meta device, so it has no values"
        if tensor.is_meta
        else f"of type {type(tensor).__name__}, whose values are not its own memory"
        if wraps or tensor.is_quantized or nn.parameter.is_lazy(tensor)
        else ""
    )
    if problem:
        raise CheckpointError(f"{name}: {problem}; only plain tensors can be compared bit by bit.")


def _live(names: tuple[str, ...], tensor: Tensor) -> StateTensor:
    local, held = tensor.detach(), None
    if is_sharded(tensor):
        held, local = _held(names[0], tensor), local.to_local()  # type: ignore[attr-defined]
    return StateTensor(names, tensor.dtype, tuple(tensor.shape), lambda: local, held, live=local)


def _held(name: str, tensor: Any) -> tuple[slice, ...]:
    """Return the part of a DTensor that this process holds."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if not all(placement.is_shard() or placement.is_replicate() for placement in tensor.placements):
        raise CheckpointError(
            f"{name}: placed as {tensor.placements}; only sharded and replicated tensors have values."
        )
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))
