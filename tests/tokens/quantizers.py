"""Quantize chosen modules of a model as each library does, on the CPU; a library that is missing skips the test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn


def bitsandbytes_4bit(model: Any, names: list[str]) -> None:
    library = _library("bitsandbytes").nn
    _replace(
        model,
        names,
        lambda m: library.Linear4bit(m.in_features, m.out_features, False, m.weight.dtype, quant_type="nf4"),
        lambda m: library.Embedding4bit(*m.weight.shape, dtype=m.weight.dtype, quant_type="nf4"),
    )


def bitsandbytes_8bit(model: Any, names: list[str]) -> None:
    library = _library("bitsandbytes").nn
    _replace(
        model,
        names,
        lambda m: library.Linear8bitLt(m.in_features, m.out_features, False, has_fp16_weights=False),
        lambda m: library.Embedding8bit(*m.weight.shape, dtype=m.weight.dtype),
    )


def torchao_int8(model: Any, names: list[str]) -> None:
    library = _library("torchao.quantization")
    library.quantize_(model, library.Int8WeightOnlyConfig(), filter_fn=lambda _, name: name in names)


def quanto_int8(model: Any, names: list[str]) -> None:
    library = _library("optimum.quanto")
    library.quantize(model, weights=library.qint8, include=names)
    library.freeze(model)


class Int8Linear(nn.Linear):
    """As plain as it can be: a whole number for each value, and a scale for each row."""

    scale: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


class Int8Embedding(nn.Embedding):
    scale: torch.Tensor

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.weight[ids] * self.scale[ids]


def own_int8(model: Any, names: list[str]) -> None:
    for name in names:
        module = model.get_submodule(name)
        weight = module.weight.detach()
        module.__class__ = Int8Embedding if isinstance(module, nn.Embedding) else Int8Linear
        module.register_buffer("scale", weight.abs().amax(1, keepdim=True).clamp(min=1e-6) / 127)
        module.weight = nn.Parameter((weight / module.scale).round().to(torch.int8), requires_grad=False)


QUANTIZERS: dict[str, Callable[[Any, list[str]], None]] = {
    "own int8": own_int8,
    "bitsandbytes 4 bit": bitsandbytes_4bit,
    "bitsandbytes 8 bit": bitsandbytes_8bit,
    "torchao int8": torchao_int8,
    "quanto int8": quanto_int8,
}


def _library(name: str) -> Any:
    return pytest.importorskip(name, reason=f"needs {name}, a library that quantizes")


def _replace(model: Any, names: list[str], linear: Callable[[Any], Any], embedding: Callable[[Any], Any]) -> None:
    for name in names:
        module = model.get_submodule(name)
        quantized = (embedding if isinstance(module, nn.Embedding) else linear)(module)
        quantized.load_state_dict({"weight": module.weight.detach().clone()})
        model.set_submodule(name, quantized.to("cpu"))


def linears(model: Any) -> list[str]:
    """Return the names of the linear layers, without the head."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]


def storage(module: nn.Module) -> list[torch.Tensor]:
    """Return copies of all that a quantized module stores, as bytes, without rows that stand beside it."""
    found: list[torch.Tensor] = []
    weight: Any = module.weight
    try:
        stored = module.state_dict()
    except NotImplementedError:  # bitsandbytes cannot save its embeddings
        quant_state = getattr(weight, "quant_state", None)
        stored = {"weight": weight, "scale": weight.SCB if quant_state is None else quant_state.absmax}
    for name, value in stored.items():
        if isinstance(value, torch.Tensor) and "new_token" not in name:
            parts = [value] if value.data_ptr() else [v for v in vars(value).values() if isinstance(v, torch.Tensor)]
            assert parts, name
            found += [part.detach().clone().contiguous().view(-1).view(torch.uint8) for part in parts]
    assert found
    return found
