"""A model's vocabulary grows where it is: the tables over the tokens, and all that knows how many there are.

Letters used for shapes in this file:
    V  rows of the table          *  the rest of a row: (D,), or () for a bias

The Parameters and the modules that hold them stay the same objects, so a tied head stays tied, and hooks, subclasses
and biases stay what they were. transformers' own `resize_token_embeddings` makes a new head and draws random numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frostline.errors import PartialTensorError
from frostline.partial.indices import writable
from frostline.partial.model_tensors import Found, find_tensors


def tables(model: Any) -> list[Found]:
    """The input embedding, then the weight of a head that is not tied to it, and the head's bias."""
    if not hasattr(model, "get_input_embeddings"):
        raise TypeError(f"model: a {type(model).__name__} has no get_input_embeddings(). Pass a language model.")
    embedding = model.get_input_embeddings()
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    wanted = [(embedding, "weight")]
    if head is not None:
        wanted += [(head, "weight")] + [(head, "bias")] * (getattr(head, "bias", None) is not None)
    found: dict[int, Found] = {}
    everywhere = find_tensors(model)
    for module, name in wanted:
        one = next((one for one in everywhere if (module, name) in one.owners), None)
        if one is None or not one.tensor.is_floating_point() or one.tensor.is_meta:
            raise PartialTensorError(
                f"model: the {name} of its {type(module).__name__} is not a plain tensor of numbers here, so no rows "
                "can be added. Leave embedding and head out of quantization, offloading and adapters' target_modules."
            )
        found[id(one.tensor)] = one
    return list(found.values())


def refuse_to_grow(model: nn.Module, found: list[Found], size: int) -> None:
    """Refuse tables that cannot have `size` rows where they are; those that have them already are fine."""
    before = len(found[0].tensor)
    if all(len(one.tensor) >= size for one in found):
        return
    for one in found:
        if one.layout is not None or one.mapped:
            raise PartialTensorError(
                f"model: {one.names[0]} learns in part or is mapped, so it cannot grow to {size:,} rows. "
                "Call fl.merge(model) first."
            )
        if len(one.tensor) != before:
            raise PartialTensorError(
                f"model: {one.names[0]} has {len(one.tensor):,} rows and {found[0].names[0]} {before:,}, so one "
                "vocab_size cannot fit both after they have grown. Resize one to the other's rows first."
            )
    grows = {module for one in found for module, _ in one.owners}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings == before and module not in grows:
            raise PartialTensorError(
                f"model: {name} has a row for each token too, and would not grow. Call model.resize_token_embeddings"
                f"({size}) first; then add_tokens has nothing to grow."
            )


def whole(one: Found) -> Tensor:
    """The tensor with what it has learned: itself, or of a partial one a copy."""
    module, name = one.owners[0]
    tensor: Tensor = getattr(module, name).detach()
    return tensor if one.layout is None else tensor.clone()


def grow(one: Found, size: int, filler: Tensor) -> None:
    """Give the tensor `size` rows, the new ones `filler`; it stays the same Parameter, so it stays tied."""
    tensor = one.tensor
    if len(tensor) >= size:
        return
    more = filler.to(tensor.dtype).expand(size - len(tensor), *tensor.shape[1:])
    tensor.data, tensor.grad = torch.cat([tensor.data, more]), None
    for module, _ in one.owners:
        for count in ("num_embeddings", "out_features"):
            if hasattr(module, count):
                setattr(module, count, size)


def put(one: Found, values: dict[int, Tensor]) -> None:
    """Write rows: id -> values (*)."""
    module, name = one.owners[0]
    target: Tensor = writable(one.tensor) if one.layout is None else getattr(module, name)
    if values:
        target[list(values)] = torch.stack(list(values.values())).to(target)


def follow(model: Any, before: int, size: int) -> None:
    """Let the rest of the model know that its vocabulary has `size` entries, no longer `before`."""
    if size == before:
        return
    for module in model.modules():
        for holder in (module, *_configs(module)):
            for name in ("vocab_size", "decoder_vocab_size"):
                if getattr(holder, name, None) == before:
                    setattr(holder, name, size)
        bias = module._buffers.get("final_logits_bias")
        if bias is not None and bias.shape[-1] == before:
            module.final_logits_bias = F.pad(bias, (0, size - before))
    for config in _configs(model):
        config.vocab_size = size


def _configs(module: Any) -> Iterator[Any]:
    """The configuration of the text part of `module`, if it has one."""
    if (config := getattr(module, "config", None)) is not None:
        yield config.get_text_config() if hasattr(config, "get_text_config") else config
