"""Resize a model's vocabulary in place: the tables with a row per token, and the size in every module and config.

Letters used for shapes in this file:
    V  rows of the table          *  the rest of a row: (D,), or () for a bias

The Parameters and the modules that own them stay the same objects, so tied weights stay tied, and hooks, subclasses and
biases are kept. transformers' own `resize_token_embeddings` makes a new head and draws random numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frostline.errors import PartialTensorError
from frostline.partial.model_tensors import ModelTensor, find_tensors
from frostline.partial.quantized import count_rows, is_quantized, is_wrapper
from frostline.partial.rollback import model_restored_on_error, values_restored_on_error
from frostline.partial.tensor.memory import writable


def find_tables(model: Any) -> list[ModelTensor]:
    """Return the input embedding, then other embeddings and heads of the model that are not tied to it, and biases.

    Other embeddings and heads are those that parts of the model call theirs, if they have as many rows: an encoder and
    a decoder may each have one. Quantized ones are left out: see `find_quantized`.
    """
    if not hasattr(model, "get_input_embeddings"):
        raise TypeError(f"model: a {type(model).__name__} has no get_input_embeddings(). Pass a language model.")
    embeddings = _asked(model, "get_input_embeddings")
    if not embeddings:
        raise TypeError(f"model: get_input_embeddings() of a {type(model).__name__} gives none. Pass a language model.")
    wanted = [(module, "weight") for module in embeddings]
    for head in _asked(model, "get_output_embeddings"):
        wanted += [(head, "weight")] + [(head, "bias")] * (getattr(head, "bias", None) is not None)
    tables: dict[int, ModelTensor] = {}  # by id: a tied head is the embedding's tensor again
    model_tensors = find_tensors(model)
    for owner in wanted:
        if is_quantized(owner[0]):
            continue
        table = next((table for table in model_tensors if owner in table.owners), None)
        if table is None or not _is_plain(table.tensor):
            module, name = owner
            raise PartialTensorError(
                f"model: the {name} of its {type(module).__name__} is not a plain floating-point tensor, so no rows "
                "can be added. Exclude embedding and head from quantization, offloading and adapters' target_modules."
            )
        tables[id(table.tensor)] = table
    return list(tables.values())


def find_quantized(model: Any) -> dict[str, Any]:
    """Return the embeddings and heads of the model that are quantized, by name, embeddings first."""
    names = {id(module): name for name, module in model.named_modules()}
    found = [*_asked(model, "get_input_embeddings"), *_asked(model, "get_output_embeddings")]
    return {names[id(module)]: module for module in found if is_quantized(module)}


def is_head(model: Any, owners: Collection[Any]) -> bool:
    """Return whether none of the modules that own a table is an embedding: they are a head that is not tied to one."""
    return not any(module is owner for module in _asked(model, "get_input_embeddings") for owner in owners)


def _asked(model: Any, question: str) -> list[Any]:
    """Return the modules that `model` and its parts name as embedding or head, each once, the model's own first."""
    found: list[Any] = []
    for part in model.modules():
        module = None
        with contextlib.suppress(NotImplementedError, AttributeError):  # of a part for images, say
            module = getattr(part, question)()
        if module is None:
            continue
        if getattr(module, "weight", None) is None and found:
            continue  # of a part for images, too
        if getattr(module, "weight", None) is None:
            raise PartialTensorError(
                f"model: its {type(module).__name__} has no weight, so no rows can be added. "
                "Exclude embedding and head from quantization."
            )
        if not found or (not any(module is each for each in found) and _is_like(module, found[0])):
            found.append(module)
    return found


def _is_like(module: Any, first: Any) -> bool:
    same_kind = isinstance(module, nn.Embedding) == isinstance(first, nn.Embedding)
    return same_kind and count_rows(module) == count_rows(first)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not tensor.is_meta and not is_wrapper(tensor)


def check_resizable(model: nn.Module, tables: list[ModelTensor], size: int, also: Collection[str]) -> None:
    """Raise if the tables cannot be enlarged to `size` rows in place, or another one has a row for each token too.

    Args:
        model: The model.
        tables: Those of `find_tables`.
        size: How many rows they need; tables that have as many are fine.
        also: Names or patterns; an embedding that they name may stay as it is, if the tables do.
    """
    quantized = find_quantized(model)
    before = count_rows(model.get_input_embeddings())  # type: ignore[operator]
    grows = before < size or any(len(table.tensor) < size for table in tables)
    for name, module in quantized.items():
        if count_rows(module) != before:
            raise PartialTensorError(
                f"model: {name} has {count_rows(module):,} rows and the embedding {before:,}. Resize one to the other's"
                " rows before quantization."
            )
    for table in tables if grows else ():
        if table.indices is not None or table.mapped:
            raise PartialTensorError(
                f"model: {table.name} learns in part or is mapped, so it cannot grow to {size:,} rows. "
                "Call fl.merge(model) first."
            )
        if len(table.tensor) != before:
            raise PartialTensorError(
                f"model: {table.name} has {len(table.tensor):,} rows and {_embedding_name(model)} {before:,}, so one "
                "vocab_size cannot fit both after they have grown. Resize one to the other's rows first."
            )
    resized = {module for table in tables for module, _ in table.owners} | set(quantized.values())
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding) or module.num_embeddings != before or module in resized:
            continue
        weight = f"{name}.weight"
        if grows:
            raise PartialTensorError(
                f"model: {name} has a row for each token too, but would not grow. Call model.resize_token_embeddings"
                f"({size}) first, and name {weight!r} in `also`."
            )
        if not any(fnmatchcase(weight, pattern) for pattern in also):
            raise PartialTensorError(
                f"model: {name} has a row for each token too, and none of them would learn. Say so in `also`: "
                f"{{{weight!r}: fl.rows(ids)}}, or fl.nothing."
            )


def _embedding_name(model: Any) -> str:
    embedding = model.get_input_embeddings()
    return next(f"{name}.weight" for name, module in model.named_modules() if module is embedding)


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
