"""Weights that a quantization library keeps in a form of its own: they cannot learn, and count as what they stand for.

Two forms are met: integers that are a Parameter's values (bitsandbytes; of 4 bits two share a byte), and a wrapper that
calls itself a float tensor and owns no memory (torchao, quanto). No such library is imported.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from frostline.partial.sharded import is_sharded


def is_wrapper(tensor: Tensor) -> bool:
    """Return whether `tensor` only describes other tensors, and owns no memory that a part of it could learn in."""
    return not (tensor.is_meta or is_sharded(tensor) or tensor.numel() == 0) and tensor.data_ptr() == 0


def full_shape(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of the values that `tensor` stands for: of packed 4-bit values not that of their bytes."""
    packed: Any = getattr(tensor, "quant_state", None)
    return tuple(getattr(packed, "shape", None) or tensor.shape)


def why_it_cannot_learn(tensor: Tensor) -> str:
    """Return why nothing of `tensor` can learn: it holds integers, or is quantized; empty if it can."""
    if is_wrapper(tensor):
        return f"quantized ({type(tensor).__name__}): cannot learn"
    if tensor.is_floating_point() or tensor.is_complex():
        return ""
    packed = getattr(tensor, "quant_state", None)
    kind = getattr(packed, "quant_type", None)
    return f"quantized ({kind}): cannot learn" if kind else f"{tensor.dtype} cannot learn"


def is_quantized(module: Any) -> bool:
    """Return whether `module` is an embedding or a linear layer whose weight is quantized."""
    weight = getattr(module, "weight", None)
    if not isinstance(module, nn.Embedding | nn.Linear) or not isinstance(weight, Tensor) or weight.is_meta:
        return False
    return bool(why_it_cannot_learn(weight))


def count_rows(module: Any) -> int:
    """Return how many rows an embedding or a head has, of a packed weight too, and those that stand beside it."""
    if (beside := getattr(module, "new_token_slots", None)) is not None:
        return len(beside)
    if is_quantized(module):
        return int(module.num_embeddings if isinstance(module, nn.Embedding) else module.out_features)
    return len(module.weight)
