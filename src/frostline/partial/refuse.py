"""Models and plans that would be silently wrong are refused, before the first tensor changes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from frostline.errors import PartialTensorError, SelectionError
from frostline.partial.find import Found
from frostline.partial.layout import Layout
from frostline.partial.module import is_sharded
from frostline.partial.selections import Rows, Selection


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
        if isinstance(module, torch.jit.ScriptModule):
            raise PartialTensorError("model: a ScriptModule cannot be partly frozen. Use the Python module.")


def refuse_sharded(model: nn.Module) -> None:
    """Refuse a model whose tensors are spread over processes."""
    for name, parameter in model.named_parameters():
        if is_sharded(parameter):
            raise PartialTensorError(f"model: {name} is sharded. Call train_only and merge on the unsharded model.")


def refuse_unseen_uses(model: nn.Module, one: Found, found: list[Found]) -> None:
    """Refuse a tensor that is reached by another way than its name: that use would never see what learns."""
    start, end = _span(one.tensor)
    for other in found:
        other_start, other_end = _span(other.tensor)
        if other is not one and start < other_end and other_start < end:
            raise PartialTensorError(
                f"{one.names[0]} shares its memory with {other.names[0]}, which is another Parameter. "
                "Tie them by assigning the same Parameter to both."
            )
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_frostline") or (isinstance(module, nn.RNNBase) and attribute[0] == "_"):
                continue
            held = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            if any(item is one.tensor for item in held):
                raise PartialTensorError(
                    f"{one.names[0]}: {path or 'the model'}.{attribute} keeps this Parameter outside its name, so its "
                    "forward would never see what learns. Make that attribute a property that reads the Parameter."
                )


def _span(tensor: Tensor) -> tuple[int, int]:
    """First and last address of a tensor's memory; (0, 0) where it has none, as on the meta device."""
    if tensor.device.type == "meta" or tensor.numel() == 0 or is_sharded(tensor):
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
