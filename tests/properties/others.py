"""What other code does with weights, said once for partial and plain ones: terms of a loss, hooks, writes, readings.

Nothing here knows frostline: the same functions run on both sides, with `module.weight` of either.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _half_detached(w: Tensor) -> Tensor:
    mask = torch.arange(w.numel(), device=w.device).view(w.shape) % 2 == 0
    return torch.where(mask, w, w.detach()).pow(2).sum()


def _divergence(w: Tensor) -> Tensor:
    other = (2 * w.detach()).flatten().softmax(0)
    return F.kl_div(w.flatten().log_softmax(0), other, reduction="sum")


# Each gives a gradient to a weight that is used next to itself detached.
TERMS: dict[str, Callable[[Tensor], Tensor]] = {
    "times detached": lambda w: (w * w.detach()).sum(),
    "where detached": _half_detached,
    "penalty on detached": lambda w: (w - 0.5 * w.detach()).pow(2).sum() + (w.detach() - 1).abs().sum(),
    "stacked": lambda w: torch.stack([w, w.detach(), w]).prod(0).sum(),
    "divergence": _divergence,
    "over its norm": lambda w: (w / (w.detach().norm() + 1)).sum(),
    "times data": lambda w: (w.data * w).sum() + w.data.sum(),
}


def term(name: str, weights: list[Tensor]) -> Tensor | float:
    """The terms of all weights, in float32 or float64; 0 for "nothing"."""
    if name == "nothing":
        return 0.0
    return sum(0.1 * TERMS[name](w if w.dtype == torch.float64 else w.float()) / w.numel() ** 0.5 for w in weights)


def _doubled(gradient: Tensor) -> Tensor:
    return 2 * gradient


def _bounded(gradient: Tensor) -> Tensor:
    return (2 * gradient).clamp(-0.25, 0.25)


def _halve(parameter: Tensor) -> None:
    parameter.grad = parameter.grad * 0.5


def put_hooks(name: str, parameters: list[Tensor], sparse: bool) -> None:
    """Give each parameter its hook; torch cannot bound sparse gradients."""
    for parameter in parameters:
        if name == "accumulated":
            parameter.register_post_accumulate_grad_hook(_halve)
        else:
            parameter.register_hook(_doubled if sparse else _bounded)


def take(name: str, weight: Tensor) -> Any:
    """What somebody keeps of a weight."""
    if name == "weights":
        return weight
    if name == "views":
        return weight.unsqueeze(0)[0][-1:] if weight.ndim else weight.view(1)
    if name == "detached":
        return weight.detach()
    if name == "numpy":
        return weight.detach().view(_SIZES[weight.element_size()]).numpy()
    return torch.from_dlpack(weight.detach())


def shown(name: str, held: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
    """What `held` shows now, and what `weight`, a copy, says of the same numbers."""
    if name == "views":
        return held.clone().detach(), weight[-1:] if weight.ndim else weight.view(1)
    if name == "numpy":
        return torch.from_numpy(held.copy()).view(weight.dtype), weight
    return held.detach().clone(), weight


def _a_row(w: Tensor) -> None:
    if w.ndim:
        w[len(w) // 2].zero_()
    else:
        w.zero_()


def _an_entry(w: Tensor) -> None:
    w.view(-1)[3 % w.numel()] = 0.375


def _through_detach(w: Tensor) -> None:
    w.detach()[..., :1].fill_(0.25) if w.ndim else w.detach().fill_(0.25)


def _across(w: Tensor) -> None:
    (w.transpose(0, 1)[0] if w.ndim > 1 else w.view(-1)[:2]).mul_(-1)


def _chunks(w: Tensor) -> None:
    for chunk in w.view(-1).chunk(2):
        chunk.add_(0.125)


def _set_data(w: Tensor) -> None:
    w.data = w.data.clone() * 0.5


def _iterated(w: Tensor) -> None:
    for row in w if w.ndim else w.view(1):
        row.mul_(0.5)


WRITERS: dict[str, Callable[[Tensor], Any]] = {
    "a row": _a_row,
    "an entry": _an_entry,
    "data times": lambda w: w.data.mul_(0.5),
    "through detach": _through_detach,
    "across": _across,
    "copy": lambda w: w.copy_(w * 0.5 + 0.125),
    "chunks": _chunks,
    "set data": _set_data,
    "out": lambda w: torch.mul(w, 0.5, out=w),
    "iterated": _iterated,
    "every parameter": lambda w: w.mul_(0.5),
}


def _storage(weight: Tensor) -> Tensor:
    return torch.empty(0, dtype=weight.dtype).set_(weight.detach().untyped_storage()).view(weight.shape).clone()


def _address(parameter: Tensor) -> Tensor:
    """A copy of the memory at an address, as C++ reads it."""
    if parameter.device.type != "cpu":
        return parameter.detach().clone()
    size = parameter.numel() * parameter.element_size()
    raw = np.frombuffer(ctypes.string_at(parameter.data_ptr(), size), dtype=np.uint8).copy()
    return torch.from_numpy(raw).view(parameter.dtype).view(parameter.shape)


def readings(name: str, model: nn.Module) -> dict[str, Tensor]:
    """Name of each tensor -> a copy of its values, read in one way; of all tensors, or of those that it reads."""
    if name == "first parameter":
        first, parameter = next(iter(model.named_parameters()))[0], next(model.parameters())
        return {first: parameter.detach().clone()}
    if name == "raw":
        return {
            f"{path}.{own}" if path else own: _address(parameter)
            for path, module in model.named_modules()
            for own, parameter in module._parameters.items()
            if parameter is not None
        }
    if name == "state dict":
        return {key: value.clone() for key, value in model.state_dict().items()}
    read = {
        "numpy": lambda w: torch.from_numpy(w.detach().view(_SIZES[w.element_size()]).numpy().copy()).view(w.dtype),
        "dlpack": lambda w: torch.from_dlpack(w.detach()).clone(),
        "storage": _storage,
    }[name]
    return {
        name: read(getattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]))
        for name, _ in model.named_parameters()
        if not name.endswith("_learned")
    }


_SIZES = {2: torch.int16, 4: torch.int32, 8: torch.int64}
