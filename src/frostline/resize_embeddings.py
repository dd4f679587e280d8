"""Resize a model's vocabulary in place: the tables with a row per token, and the size in every module and config.

Letters used for shapes in this file:
    V  rows of the table          *  the rest of a row: (D,), or () for a bias

The Parameters and the modules that own them stay the same objects, so tied weights stay tied, and hooks, subclasses and
biases are kept. transformers' own `resize_token_embeddings` makes a new head and draws random numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frostline.errors import PartialTensorError
from frostline.partial.model_tensors import ModelTensor, find_tensors
from frostline.partial.rollback import model_restored_on_error, values_restored_on_error
from frostline.partial.tensor.memory import writable


def find_tables(model: Any) -> list[ModelTensor]:
    """Return the input embedding, then the weight of a head that is not tied to it, and the head's bias."""
    if not hasattr(model, "get_input_embeddings"):
        raise TypeError(f"model: a {type(model).__name__} has no get_input_embeddings(). Pass a language model.")
    embedding = model.get_input_embeddings()
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    wanted = [(embedding, "weight")]
    if head is not None:
        wanted += [(head, "weight")] + [(head, "bias")] * (getattr(head, "bias", None) is not None)
    tables: dict[int, ModelTensor] = {}  # by id: a tied head is the embedding's tensor again
    model_tensors = find_tensors(model)
    for owner in wanted:
        table = next((table for table in model_tensors if owner in table.owners), None)
        if table is None or not table.tensor.is_floating_point() or table.tensor.is_meta:
            module, name = owner
            raise PartialTensorError(
                f"model: the {name} of its {type(module).__name__} is not a plain floating-point tensor, so no rows "
                "can be added. Exclude embedding and head from quantization, offloading and adapters' target_modules."
            )
        tables[id(table.tensor)] = table
    return list(tables.values())


def check_resizable(model: nn.Module, tables: list[ModelTensor], size: int) -> None:
    """Raise if the tables cannot be enlarged to `size` rows in place; tables that have as many are fine."""
    before = len(tables[0].tensor)
    if all(len(table.tensor) >= size for table in tables):
        return
    for table in tables:
        if table.indices is not None or table.mapped:
            raise PartialTensorError(
                f"model: {table.name} learns in part or is mapped, so it cannot grow to {size:,} rows. "
                "Call fl.merge(model) first."
            )
        if len(table.tensor) != before:
            raise PartialTensorError(
                f"model: {table.name} has {len(table.tensor):,} rows and {tables[0].name} {before:,}, so one "
                "vocab_size cannot fit both after they have grown. Resize one to the other's rows first."
            )
    resized = {module for table in tables for module, _ in table.owners}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings == before and module not in resized:
            raise PartialTensorError(
                f"model: {name} has a row for each token too, but would not grow. Call model.resize_token_embeddings"
                f"({size}) first; then add_tokens has nothing to grow."
            )


def full_tensor(table: ModelTensor) -> Tensor:
    """Return the current values, learned ones included: the tensor itself, or a copy if it is partial."""
    module, name = table.owners[0]
    tensor: Tensor = getattr(module, name).detach()
    return tensor if table.indices is None else tensor.clone()


def resize_(table: ModelTensor, size: int, fill: Tensor) -> None:
    """Enlarge the table to `size` rows, the new ones equal to `fill`; it stays the same Parameter, so it stays tied."""
    tensor = table.tensor
    if len(tensor) >= size:
        return
    new_rows = fill.to(tensor.dtype).expand(size - len(tensor), *tensor.shape[1:])
    # Assigning .data keeps the Parameter object, which the head, hooks and the caller's own code may hold.
    tensor.data, tensor.grad = torch.cat([tensor.data, new_rows]), None
    for module, _ in table.owners:
        for attribute in ("num_embeddings", "out_features"):
            if hasattr(module, attribute):
                setattr(module, attribute, size)


def write_rows(table: ModelTensor, values: dict[int, Tensor]) -> None:
    """Write rows, a dict of row id -> values (*)."""
    module, name = table.owners[0]
    target: Tensor = writable(table.tensor) if table.indices is None else getattr(module, name)
    if values:
        target[list(values)] = torch.stack(list(values.values())).to(target)


def update_configs(model: Any, before: int, size: int) -> None:
    """Set the vocabulary size to `size` wherever modules and configs have the old one, `before`."""
    if size == before:
        return
    for module in model.modules():
        for holder in (module, *_text_configs(module)):
            for name in ("vocab_size", "decoder_vocab_size"):
                if getattr(holder, name, None) == before:
                    setattr(holder, name, size)
        bias = module._buffers.get("final_logits_bias")
        if bias is not None and bias.shape[-1] == before:
            module.final_logits_bias = F.pad(bias, (0, size - before))
    for config in _text_configs(model):
        config.vocab_size = size


@contextlib.contextmanager
def sizes_restored_on_error(model: Any) -> Iterator[None]:
    """Run the block; if it raises, give the model the parameters, buffers, sizes and configs that it had before."""
    held: list[dict[str, Any]] = [vars(config) for module in model.modules() for config in _text_configs(module)]
    held += [each for module in model.modules() for each in (vars(module), module._buffers)]
    before = [dict(each) for each in held]
    with model_restored_on_error(model, find_tensors(model)):
        try:
            yield
        except BaseException:
            for each, values in zip(held, before, strict=True):
                each.clear()
                each.update(values)
            raise


def rows_restored_on_error(tables: list[ModelTensor], ids: list[int]) -> contextlib.AbstractContextManager[None]:
    """Return a context that gives tables the rows `ids` that they had before, if its block raises before they grow."""
    written: list[tuple[Tensor, tuple[Tensor, ...] | None]] = []
    for table in tables:
        if max(ids) < len(table.tensor):  # else it will have other memory
            written.append((table.tensor, (torch.tensor(ids),)))
        if table.learned is not None:
            written.append((table.learned, None))
    return values_restored_on_error(written)


def _text_configs(module: Any) -> Iterator[Any]:
    """Yield the configuration of the text part of `module`, if it has one."""
    if (config := getattr(module, "config", None)) is not None:
        yield config.get_text_config() if hasattr(config, "get_text_config") else config
