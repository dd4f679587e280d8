"""A model under tensor parallelism: what becomes of its partial tensors when `parallelize_module` splits them.

`parallelize_module` registers a DTensor in the place of every Parameter of a module, and so of both parts. The frozen
part becomes that DTensor; the learned part stays the plain Parameter that it was, which an optimizer may hold already.
Tied modules are split one by one: where they ask for the same shards they get the same DTensor, and stay tied.

What a forward then gets of both parts is split_tensor.py.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, nn

from frostline.errors import PartialTensorError
from frostline.partial import sharded
from frostline.partial.model_tensors import parts, state_of
from frostline.partial.optimizer_guard import mark_split, owners_of
from frostline.partial.sharded import is_sharded
from frostline.partial.tensor.indices import LearnedIndices
from frostline.partial.tensor.memory import Memory


@torch.no_grad()
def take_learned(learned: Tensor, given: Any) -> None:
    """Take the values of a DTensor that was registered for a learned part: those of the first process, on every one."""
    if all(placement.is_replicate() for placement in given.placements):
        learned.copy_(given.to_local())


def split_parts(module: nn.Module, name: str, shards: nn.Parameter) -> tuple[Tensor, nn.Parameter, Memory]:
    """Return the parts and the memory of a partial tensor of `module` of which `shards` is the frozen part now.

    All processes call this, from `parallelize_module`.

    Raises:
        PartialTensorError: No process holds one block of it, or the processes chose different rows.
    """
    _check_not_fsdp(name)
    given: Any = shards
    old, learned = parts(module, name)
    memory = cast(Any, state_of(module)).partial[name]
    check_split(name, given, memory.indices)
    for tied in owners_of(learned) - {module}:
        for other_name, other in cast(Any, state_of(tied)).partial.items():
            part, also_learned = cast(Any, parts(tied, other_name))
            if also_learned is learned and other.mesh is not None and _same_shards(part, given):
                return part, learned, other
    mark_split(old, shards)
    memory = Memory(memory.indices, memory.looked_up)
    note_parts(memory, given, learned)
    return shards.requires_grad_(False), learned, memory


def note_parts(memory: Memory, frozen: Any, learned: Tensor) -> None:
    """Note in the memory of a partial tensor that its parts are new: whether it is split, and what this process has."""
    if not is_sharded(frozen):
        return memory.note(frozen, learned)
    from frostline.partial.shards import share_of

    memory.mesh = frozen.device_mesh
    share_of(memory, frozen)


def check_split(name: str, shards: Any, indices: LearnedIndices) -> None:
    """Raise on every process if `shards`, a DTensor, cannot be the frozen part of a tensor in which `indices` learn."""
    if not is_sharded(shards):
        return
    try:
        sharded.check_placements(shards)
    except PartialTensorError as error:
        raise PartialTensorError(f"{name}: {error}") from None
    if not shards.is_meta:
        sharded.check_same(name, indices, sharded.groups_of(shards.device_mesh), shards.device)


def shown(module: nn.Module, name: str, memory: Memory, frozen: Any, learned: Tensor) -> Tensor:
    """Return the two sharded parts as `module` shows them: as one tensor, but while FSDP2 holds them."""
    if is_sharded(frozen) and frozen.device_mesh != memory.mesh:
        if memory.mesh is None and "_is_hooked" in vars(module):  # it put the DTensor into `_parameters` itself
            raise PartialTensorError(f"{name}: transformers has split it after the plan. Call train_only after that.")
        return _for_fsdp(module, name, memory, frozen, learned)
    if torch.compiler.is_compiling():  # which then runs this module eagerly
        raise PartialTensorError(f"{name}: torch.compile cannot trace a partial tensor that is split over processes.")
    from frostline.partial.shards import shard_tensor
    from frostline.partial.split_tensor import split_tensor  # imports torch.distributed.tensor, which takes a second

    if not is_sharded(frozen):  # transformers shows a module its shard alone where it can do with that
        return shard_tensor(name, memory, frozen, learned)
    if sharded.was_sharded(memory.indices):  # a forward under FSDP2, which all processes run
        sharded.check_agreement(name, memory.indices, frozen, learned)
    return split_tensor(memory, frozen, learned)


def _for_fsdp(module: nn.Module, name: str, memory: Memory, frozen: Tensor, learned: Tensor) -> Tensor:
    """Return the frozen part: FSDP2 asks for the Parameter that it shards; in a forward the parts are gathered."""
    if is_sharded(learned) and getattr(module, "sparse", False):
        raise PartialTensorError(
            f"{name}: fully_shard cannot reduce sparse gradients. Set sparse=False on its module; the gradient "
            "holds only the rows that learn."
        )
    sharded.remember_sharded(frozen, learned, memory)
    sharded.note_mesh(memory.indices, frozen)
    return frozen


@contextlib.contextmanager
def left_out(module: nn.Module, convert: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Leave the split frozen parts of `module` out of a conversion that does not change them: torch would swap them.

    Raises:
        PartialTensorError: It would change them.
    """
    held, state = dict(module._parameters), cast(Any, state_of(module))
    split = {name: held[name] for name, memory in state.partial.items() if memory.mesh is not None}
    with torch.no_grad():
        for name, frozen in split.items():
            if frozen is not None and convert(frozen) is not frozen:
                raise PartialTensorError(
                    f"{name}: a partial tensor that is split over processes cannot be converted or moved. "
                    "Convert the model before parallelize_module."
                )
    for name in split:
        del module._parameters[name]
    try:
        yield
    finally:
        held |= module._parameters
        module._parameters.clear()
        module._parameters.update(held)


def _check_not_fsdp(name: str) -> None:
    """Raise if it is FSDP2 that registers a DTensor, and not tensor parallelism."""
    frame: FrameType | None = sys._getframe(3)
    while frame is not None and frame.f_code.co_name == "__setattr__":
        frame = frame.f_back
    if frame is not None and frame.f_code.co_name == "unsafe_setattr_param":
        raise PartialTensorError(
            f"{name}: fully_shard sets Parameters by the module's own __setattr__, which cannot tell both parts apart. "
            "Leave __setattr__ to nn.Module."
        )


def _same_shards(a: Any, b: Any) -> bool:
    same = is_sharded(a) and a.device_mesh == b.device_mesh and a.placements == b.placements
    return bool(same and a.shape == b.shape and a.dtype == b.dtype)
