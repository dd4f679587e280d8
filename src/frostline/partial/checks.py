"""Checks of models and plans: each raises, before the first tensor changes, where training would be silently wrong."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from frostline.errors import PartialTensorError, SelectionError
from frostline.partial.model_tensors import ModelTensor, memories_of
from frostline.partial.optimizer_guard import owners_of, parts_like
from frostline.partial.selections import Rows, Selection
from frostline.partial.sharded import is_sharded
from frostline.partial.tensor import PartialTensor
from frostline.partial.tensor.indices import LearnedIndices


def check_mapped_selection(model_tensor: ModelTensor, selection: Selection) -> None:
    """Raise unless the selection of a mapped table, whose file is never written to, is one of rows."""
    if not isinstance(selection, Rows):
        raise SelectionError(f"{model_tensor.name}: a mapped table learns by rows. Pass fl.rows(ids), not {selection}.")


def check_nothing_lost(model_tensor: ModelTensor, learns: LearnedIndices | bool) -> None:
    """Raise if rows of a mapped table learned, and would not learn under the new plan: they exist in memory only."""
    if not model_tensor.mapped or model_tensor.indices is None:
        return
    row_to_slot = learns.row_to_slot if isinstance(learns, LearnedIndices) else None
    if row_to_slot is None or (row_to_slot[model_tensor.indices.flat] < 0).any():
        raise PartialTensorError(
            f"{model_tensor.name}: learned rows cannot be written back to the read-only file. "
            "Keep them in the new plan, or write a new table from state_dict()."
        )


def check_not_wrapped(model: nn.Module) -> None:
    """Raise if `model` is sharded, compiled to TorchScript or inside a wrapper that has recorded its parameters."""
    check_not_sharded(model)
    for module in model.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise PartialTensorError(
                "model: DistributedDataParallel knows only the parameters it was built with. Call train_only first."
            )
        if any(cls.__name__ == "FullyShardedDataParallel" for cls in type(module).__mro__):
            raise PartialTensorError(
                "model: FullyShardedDataParallel has flattened its parameters. Call train_only first, then fully_shard."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise PartialTensorError("model: a ScriptModule cannot be partly frozen. Use the Python module.")


def check_not_sharded(model: nn.Module) -> None:
    """Raise if FSDP2 or DeepSpeed's ZeRO-3 has sharded the tensors of `model`; tensor parallelism may split them."""
    fully_sharded = is_fully_sharded(model)
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id"):
            raise PartialTensorError(
                f"model: DeepSpeed's ZeRO-3 has split {name}, of which no part can learn then. Load the model "
                "again, and use stage 1 or 2, or torch's fully_shard."
            )
        if is_sharded(parameter) and fully_sharded:
            raise PartialTensorError(
                f"model: {name} is sharded. Plans change before fully_shard only: save_learned here, then load_learned "
                "into a model that is not sharded, and continue with that one."
            )


def is_fully_sharded(model: nn.Module) -> bool:
    """Return whether FSDP2 has sharded `model`, or a part of it."""
    return any(cls.__name__ == "FSDPModule" for module in model.modules() for cls in type(module).__mro__)


def check_ties(model: nn.Module, model_tensor: ModelTensor) -> None:
    """Raise if a module outside `model` is tied to the tensor: it would keep the two parts that this model gives up."""
    learned = model_tensor.learned
    if learned is not None and (outside := owners_of(learned) - set(model.modules())):
        raise PartialTensorError(
            f"{model_tensor.name}: a {type(outside.pop()).__name__} outside this model is tied to it. "
            "Pass the whole model that contains both."
        )


def check_memory(model_tensor: ModelTensor) -> None:
    """Raise if what learns of the tensor could not be written to its memory without changing what does not."""
    tensor = model_tensor.tensor
    if tensor.is_inference():
        raise PartialTensorError(
            f"{model_tensor.name}: made under inference_mode, so it cannot learn. Make the model outside, or clone it."
        )
    reach = 0  # of the dimensions so far, from the shortest step to the longest
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)) if not is_sharded(tensor) else ():
        if size > 1 and stride <= reach:
            raise PartialTensorError(
                f"{model_tensor.name}: elements of it share memory (strides {tensor.stride()}), so frozen ones would "
                "move with what learns. Make it a tensor of its own: nn.Parameter(tensor.contiguous())."
            )
        reach += (size - 1) * stride if size > 1 else 0


def check_own(name: str, indices: LearnedIndices, learned: Tensor) -> None:
    """Raise if `learned` is of a model in which other elements learn: torch.func runs a model on any parts."""
    for part in parts_like(learned):
        for memory, _, own in [each for owner in owners_of(part) for each in memories_of(owner)]:
            other = own is part and memory.indices is not indices and not memory.indices.same_entries(indices)
            if other and (_same(part, learned) or _is_in_ensemble(part, learned)):
                raise PartialTensorError(
                    f"{name}: functional_call was given a learned part of a model in which other {indices.kind} learn. "
                    "Call fl.merge on the models first."
                )


def _same(part: Tensor, learned: Tensor) -> bool:
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(learned)
    return not wrapped and part.data_ptr() == learned.data_ptr() != 0


def _is_in_ensemble(part: Tensor, learned: Tensor) -> bool:
    """Return whether `part` is among those that were stacked for vmap: told by their values."""
    if not torch._C._functorch.is_batchedtensor(learned):
        return False
    stacked: Any = learned
    dim = torch._C._functorch.maybe_get_bdim(stacked)
    while torch._C._functorch.is_functorch_wrapped_tensor(stacked):
        stacked = torch._C._functorch.get_unwrapped(stacked)
    return bool((stacked.movedim(dim, 0) == part.detach()).flatten(1).all(1).any())


def check_unseen_uses(model: nn.Module, found: list[ModelTensor], partial: list[ModelTensor]) -> None:
    """Raise if a tensor that is about to become partial shares its memory with anything else.

    Code that reads this memory through another Parameter, a buffer or an attribute would see only the frozen part, and
    never what was learned.
    """
    if not partial:
        return
    shared = [one.name for one in found for other in found if one.learned is not None and one.learned is other.learned]
    if len(shared) > len(set(shared)):
        raise PartialTensorError(
            f"{shared[0]} is tied to a tensor that tensor parallelism has split in another way, and a new plan would "
            "part them. Split tied modules alike: a table by RowwiseParallel, a head by ColwiseParallel."
        )
    others: list[tuple[tuple[int, int], ModelTensor | None, str]] = [
        (_memory(other.tensor), other, f"{other.name}, which is another Parameter") for other in found
    ]
    others += [(_memory(tensor), None, where) for tensor, where in _tensors_outside_parameters(model)]
    for model_tensor in partial:
        start, end = _memory(model_tensor.tensor)
        for (other_start, other_end), other, where in others:
            if other is not model_tensor and start < other_end and other_start < end:
                raise PartialTensorError(
                    f"{model_tensor.name} shares its memory with {where}: that use would never see what learns. Tie "
                    "parameters by assigning the same one; make an attribute a property that reads the parameter."
                )


def _tensors_outside_parameters(model: nn.Module) -> Iterator[tuple[Tensor, str]]:
    """Yield the tensors that modules keep in attributes, containers and buffers, and where."""
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            # Recurrent modules keep lists of their Parameters; a partial one replaces these by a property.
            recurrent = isinstance(module, nn.RNNBase) and attribute in ("_flat_weights", "_flat_weight_refs")
            if attribute in ("_parameters", "_modules", "_frostline") or recurrent:
                continue
            for tensor in _held_by(value):
                if not isinstance(tensor, PartialTensor):
                    yield tensor, f"attribute {attribute} of {path or 'the model'}"


def _held_by(value: Any, inside: bool = False) -> Iterator[Tensor]:
    """Yield the tensors in a value: in containers, in what functions have captured, and in attributes of an object."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, functools.partial):
            yield from _held_by([leaf.func, leaf.args, leaf.keywords], inside)
        elif isinstance(leaf, nn.Module | type | ModuleType) or hasattr(leaf, "param_groups") or inside:
            continue  # one level deep: a trainer refers to everything
        elif isinstance(leaf, MethodType):
            yield from _held_by([leaf.__self__, leaf.__func__])
        elif isinstance(leaf, FunctionType):
            captured = [cell.cell_contents for cell in leaf.__closure__ or () if cell != CellType()]
            yield from _held_by([captured, leaf.__defaults__, leaf.__kwdefaults__], inside=True)
        elif hasattr(leaf, "__dict__"):
            yield from _held_by(vars(leaf), inside=True)


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Return the first address of a tensor's memory and the one after its last; (0, 0) if it has no data of its own."""
    if tensor.device.type == "meta" or tensor.numel() == 0 or tensor.layout != torch.strided or is_sharded(tensor):
        return 0, 0
    if tensor.data_ptr() == 0:  # a wrapper of other tensors, such as a quantized weight
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
