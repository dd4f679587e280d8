"""Several ways to train some entries or rows of a model's tensors: frostline's, a masked gradient, PEFT's SHiRA.

Each way is a function of a model, which it may change, and the parts that learn: name of a tensor -> bool mask of its
shape, or ids of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

import frostline as fl

Parts = Mapping[str, Tensor]


@dataclass
class Way:
    """One way to train parts of tensors.

    Attributes:
        learns: The Parameters that hold the parts, for the optimizer.
        read: Name of a tensor -> its current value.
    """

    learns: list[nn.Parameter]
    read: Callable[[str], Tensor]


def frozen(model: nn.Module, parts: Parts) -> Way:
    """Nothing of these tensors learns."""
    for name in parts:
        model.get_parameter(name).requires_grad_(False)
    return Way([], _reader(model))


def frostline(model: nn.Module, parts: Parts) -> Way:
    """The parts learn, as partial tensors; what else learned keeps learning."""
    others = {name: fl.everything for name, tensor in model.named_parameters() if tensor.requires_grad}
    plan = fl.train_only(model, others | {name: _selection(part) for name, part in parts.items()})
    learned = dict(model.named_parameters())
    assert len(plan.parameters()) == len(others)
    return Way([learned[f"{name}_learned"] for name in parts], _reader(model))


def masked(model: nn.Module, parts: Parts) -> Way:
    """The tensors learn; a hook multiplies their gradient by the mask."""
    way = full(model, parts)
    for weight, part in zip(way.learns, parts.values(), strict=True):
        weight.register_hook(_masking(mask_of(weight, part)))
    return way


def _masking(mask: Tensor) -> Callable[[Tensor], Tensor]:
    def hook(gradient: Tensor) -> Tensor:
        if not gradient.is_sparse:
            return gradient * mask
        ids, rows = gradient._indices(), gradient._values()
        rows = rows * mask[ids[0]]
        return torch.sparse_coo_tensor(ids, rows, gradient.shape, check_invariants=False)

    return hook


def shira(model: nn.Module, parts: Parts) -> Way:
    """PEFT's SHiRA layers, each with its own mask; they know entries of `nn.Linear` only."""
    from peft import ShiraConfig
    from peft.tuners.shira.layer import Linear

    learns: list[nn.Parameter] = []
    for name, mask in parts.items():
        path = name.removesuffix(".weight")
        base: Any = model.get_submodule(path)
        base.requires_grad_(False)
        rank = int(mask.sum()) // sum(mask.shape)  # SHiRA counts entries as LoRA of this rank would
        layer: Any = Linear(base, mask.float(), "default", ShiraConfig(r=rank), r=rank)
        model.set_submodule(path, layer)
        learns.append(layer.shira_weight["default"])

    @torch.no_grad()
    def read(name: str) -> Tensor:
        if name not in parts:
            return _reader(model)(name)
        layer: Any = model.get_submodule(name.removesuffix(".weight"))
        value: Tensor = layer.base_layer.weight + layer.get_delta_weight("default").to_dense()
        return value

    return Way(learns, read)


def full(model: nn.Module, parts: Parts) -> Way:
    """The tensors learn, with every entry."""
    return Way([model.get_parameter(name) for name in parts], _reader(model))


WAYS: dict[str, Callable[[nn.Module, Parts], Way]] = {
    "frozen": frozen,
    "frostline": frostline,
    "masked": masked,
    "shira": shira,
    "full": full,
}


def _selection(part: Tensor) -> Any:
    return fl.entries(part) if part.dtype == torch.bool else fl.rows(part)


def mask_of(weight: Tensor, part: Tensor) -> Tensor:
    """Return what learns as a mask that broadcasts to the tensor's shape."""
    if part.dtype == torch.bool:
        return part
    return torch.zeros(len(weight), *[1] * (weight.ndim - 1), dtype=torch.bool).index_fill(0, part, True)


def _reader(model: nn.Module) -> Callable[[str], Tensor]:
    return lambda name: attrgetter(name)(model).detach().clone()
