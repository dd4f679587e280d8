"""Models and plans that would be silently wrong are refused, before the first tensor changes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from frostline.errors import PartialTensorError, SelectionError
from frostline.partial.indices import Layout
from frostline.partial.model_tensors import Found
from frostline.partial.optimizer_guard import owners_of
from frostline.partial.selections import Rows, Selection
from frostline.partial.sharded import is_sharded
from frostline.partial.tensor import PartialTensor


def refuse_for_mapped(one: Found, selection: Selection) -> None:
    """A mapped file is never written to: its rows can start to learn, in memory, but not stop or learn as a whole."""
    if not isinstance(selection, Rows):
        raise SelectionError(f"{one.names[0]}: a mapped table learns by rows. Pass fl.rows(ids), not {selection}.")


def refuse_to_forget(one: Found, layout: Layout | bool) -> None:
    """Rows of a mapped table that learned live in memory alone, so a new plan has to go on with them."""
    if not one.mapped or one.layout is None:
        return
    slots = layout.slots if isinstance(layout, Layout) else None
    if slots is None or (slots[one.layout.places[0]] < 0).any():
        raise PartialTensorError(
            f"{one.names[0]}: the file is never written to, so rows of it that learned have nowhere to go. "
            "Keep them in the new plan, or write a new table from state_dict()."
        )


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse a model that is already in the hands of something that counted its parameters."""
    refuse_sharded(model)
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


def refuse_sharded(model: nn.Module) -> None:
    """Refuse a model whose tensors are spread over processes."""
    for name, parameter in model.named_parameters():
        if is_sharded(parameter):
            raise PartialTensorError(
                f"model: {name} is sharded. Plans change before fully_shard only: save_learned here, then load_learned "
                "into a model that is not sharded, and go on with that."
            )


def refuse_outside_ties(model: nn.Module, one: Found) -> None:
    """Refuse to change one end of a tie: the modules outside `model` would be left with parts of their own."""
    if one.learned is not None and (outside := owners_of(one.learned) - set(model.modules())):
        raise PartialTensorError(
            f"{one.names[0]}: a {type(outside.pop()).__name__} outside this model is tied to it. "
            "Call it on the whole model that holds both."
        )


def refuse_unseen_uses(model: nn.Module, found: list[Found], partial: list[Found]) -> None:
    """Refuse tensors reached by another way than their names: that use would never see what learns."""
    if not partial:
        return
    others: list[tuple[tuple[int, int], Found | None, str]] = [
        (_span(one.tensor), one, f"{one.names[0]}, which is another Parameter") for one in found
    ]
    others += [(_span(tensor), None, where) for tensor, where in _kept_outside(model)]
    for one in partial:
        start, end = _span(one.tensor)
        for (other_start, other_end), other, where in others:
            if other is not one and start < other_end and other_start < end:
                raise PartialTensorError(
                    f"{one.names[0]} shares its memory with {where}: that use would never see what learns. Tie "
                    "parameters by assigning the same one; make an attribute a property that reads the parameter."
                )


def _kept_outside(model: nn.Module) -> Iterator[tuple[Tensor, str]]:
    """Tensors that modules keep in attributes, containers and buffers, and where."""
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            recurrent = isinstance(module, nn.RNNBase) and attribute in ("_flat_weights", "_flat_weight_refs")
            if attribute in ("_parameters", "_modules", "_frostline") or recurrent:
                continue
            for leaf in tree_leaves(value):
                if isinstance(leaf, Tensor) and not isinstance(leaf, PartialTensor):
                    yield leaf, f"what {path or 'the model'} keeps in {attribute}"


def _span(tensor: Tensor) -> tuple[int, int]:
    """First and last address of a tensor's memory; (0, 0) where it has none, as on the meta device."""
    if tensor.device.type == "meta" or tensor.numel() == 0 or tensor.layout != torch.strided or is_sharded(tensor):
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
