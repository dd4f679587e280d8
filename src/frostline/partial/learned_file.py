"""Save and load only what was learned: kilobytes for a few rows of a table of gigabytes.

The file (learned_format.py) says of each tensor which elements learned, so that it is compared with the plan of the
model it is loaded into, and holds the SHA-256 of everything in the tensor that did not learn, so that loading into
another base model is noticed. Rows that `add_tokens` added are found by the text of their token, not by their number.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from frostline.errors import LearnedFileError
from frostline.partial import learned_format
from frostline.partial.arguments import check_model
from frostline.partial.learned_format import Saved, dtype_name
from frostline.partial.learned_match import check_plan, described, resolve, tokens_of
from frostline.partial.model_tensors import ModelTensor, find_tensors, state_of
from frostline.partial.rollback import values_restored_on_error
from frostline.partial.sharded import (
    chunks,
    full_tensor,
    gather,
    is_sharded,
    local_part,
    on_one_process,
    scatter_,
    shard_slices,
)
from frostline.partial.tensor.indices import LearnedIndices
from frostline.partial.tensor.memory import writable


@dataclass(frozen=True)
class Loaded:
    """What `load_learned` loaded.

    Attributes:
        tensors: Name of each tensor in the model -> what was loaded: "2 rows", "5 entries", "everything" or "buffer".
        tokens: Text of each token whose rows were loaded -> its id in the model.
    """

    tensors: dict[str, str]
    tokens: dict[str, int]

    def __str__(self) -> str:
        text = "loaded " + ", ".join(f"{name} ({what})" for name, what in self.tensors.items())
        return f"{text}; tokens {', '.join(map(repr, self.tokens))}" if self.tokens else text

    __repr__ = __str__


def save_learned(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Save what learns in `model`, and nothing else.

    If FSDP2 has sharded the model, every process must call this; the first one writes the same file that a single
    process would have written. Under DDP every process has all values: call it on one of them.

    Args:
        model: A module that `train_only` (or `vectors.embedding`) changed, or any ancestor of one.
        path: Where to write; conventionally ends in `.safetensors`. Written whole or not at all; of a link, its target.

    Raises:
        LearnedFileError: Nothing in `model` learns, or the file cannot be written.

    Cost: writes what learns; reads every partial tensor once, for the SHA-256 of its frozen part. For a sharded model
    the learned values are gathered, and so is each partial tensor, about 64 MB at a time.

    Example:
        >>> import frostline as fl, tempfile
        >>> embedding, other = nn.Embedding(5, 2), nn.Embedding(5, 2)
        >>> _ = other.load_state_dict(embedding.state_dict())
        >>> plan = fl.train_only(embedding, {"weight": fl.rows([1, 4])})
        >>> with torch.no_grad():
        ...     _ = embedding.weight_learned.fill_(7.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fl.save_learned(embedding, f"{folder}/rows.safetensors")
        ...     print(fl.load_learned(other, f"{folder}/rows.safetensors"))
        loaded weight (2 rows)
        >>> other.weight[[1, 4]].tolist()
        [[7.0, 7.0], [7.0, 7.0]]
    """
    check_model(model)
    saved: dict[str, Saved] = {}
    for model_tensor in find_tensors(model):
        name, tensor = model_tensor.name, model_tensor.tensor
        learned, indices = model_tensor.learned, model_tensor.indices
        about = tuple(tensor.shape), dtype_name(tensor)
        tied = tuple(dict.fromkeys([*model_tensor.names[1:], *model_tensor.stands_for]))
        if indices is not None and learned is not None:
            base, tokens = fingerprint(tensor, indices), tokens_of(model_tensor)
            if indices.kind == "rows" and tokens:
                learning = set(indices.flat.tolist())
                tokens = {text: row for text, row in tokens.items() if row in learning}
            saved[name] = Saved(indices.kind, *about, full_tensor(learned), indices, base, tied, tokens)
        elif tensor.requires_grad:
            saved[name] = Saved("everything", *about, full_tensor(tensor), tied=tied)
    if not saved:
        raise LearnedFileError("model: nothing in it learns. Call fl.train_only first.")
    for name, buffer in _trained_buffers(model):
        saved[name] = Saved("buffer", tuple(buffer.shape), dtype_name(buffer), buffer)

    def write() -> None:
        learned_format.write(saved, Path(path))

    on_one_process(model, write)


def load_learned(model: nn.Module, path: str | os.PathLike[str], strict: bool = True) -> Loaded:
    """Load what `save_learned` saved into `model`, plain or partial; the plan of `model` does not change.

    Args:
        model: A module with the same parameter names; any name of a tied tensor will do. A tensor that was tied in the
            saved model is loaded under all its names.
        path: A file that `save_learned` wrote.
        strict: Require that the file holds exactly what learns in `model`, if `train_only` or `add_tokens` made a plan
            for it. False loads what the file has, also where it does not learn, leaves out tensors and tokens that
            `model` does not have, and leaves the rest of the plan as it is.

    Returns:
        What was loaded; prints as one line.

    Raises:
        LearnedFileError: The file was not written by `save_learned`, is damaged or of a later version; a tensor in it
            matches none of `model`, or two that differ match one tied tensor; its rows are those of tokens that `model`
            does not have; or, under `strict`, file and plan differ: the message lists in what.
            It is also a ValueError, and names the parameter.
            Whatever is raised, Ctrl-C included, the model is as it was before.

    Warns:
        UserWarning: Elements that did not learn, or the dtype, differ from those of the tensor in which the values were
            learned.

    Cost: reads the file, and each tensor that is written to once, for its SHA-256; a copy of what it overwrites, until
        it returns.
    """
    path = Path(path)
    check_model(model)
    targets = find_tensors(model)
    try:
        saved = learned_format.read(path)
        writes, buffers = resolve(saved, model, targets, strict)
        if strict:
            check_plan(targets, writes, buffers, model)
    except LearnedFileError as error:
        raise LearnedFileError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    for target, item in writes:
        _check_mapped(path, target, item)
    for target, item in writes:
        target.sync()  # so that its fingerprint is that of the full tensor
        _warn_of_differences(path, target, item)
    written = [each for target, item in writes for each in _written(item, target)]
    written += [(buffer, None) for buffer, _ in buffers.values()]
    what = {target.name: described(item) for target, item in writes} | dict.fromkeys(buffers, "buffer")
    loaded = Loaded(what, {text: row for _, item in writes for text, row in item.tokens.items()})
    with values_restored_on_error(written):
        for buffer, item in buffers.values():
            buffer.copy_(item.values)
        for target, item in writes:
            _write_values(target, item)
        return loaded  # from inside: after this line nothing can interrupt that would not be undone


def _written(item: Saved, target: ModelTensor) -> list[tuple[Tensor, tuple[Tensor, ...] | None]]:
    """Return the tensors to which loading `item` writes, each with its index there; None for all of it."""
    index = None if item.indices is None else item.indices.index
    whole = [] if target.mapped else [(target.tensor, index)]
    return whole if target.learned is None else [*whole, (target.learned, None)]


def _check_mapped(path: Path, target: ModelTensor, item: Saved) -> None:
    """Raise if loading `item` would write to a mapped table."""
    if not target.mapped:
        return
    row_to_slot = target.indices.row_to_slot if target.indices is not None else None
    if item.indices is None or row_to_slot is None or bool((row_to_slot[item.indices.flat] < 0).any()):
        raise LearnedFileError(
            f"{path}: {target.name} is mapped and never written to. Call train_only with the file's rows first."
        )


def _trained_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield persistent buffers that training changes: of modules that learn, and running statistics if not frozen."""
    for prefix, module in model.named_modules():
        state = state_of(module)
        learns = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        norm = isinstance(module, nn.modules.batchnorm._NormBase)
        if (learns or norm) and not (state is not None and state.frozen_stats):
            for name, buffer in module._buffers.items():
                if buffer is not None and name not in module._non_persistent_buffers_set:
                    yield (f"{prefix}.{name}" if prefix else name), buffer


def fingerprint(tensor: Tensor, indices: LearnedIndices) -> str:
    """Return the SHA-256 of the bytes of `tensor`, with zeros at the learned indices; works chunk by chunk."""
    digest = hashlib.sha256(str((tuple(tensor.shape), tensor.dtype)).encode())
    first, *rest = (index.cpu() for index in indices.index)
    for start, chunk in chunks(tensor):
        inside = (first >= start) & (first < start + len(chunk))
        position = (first[inside] - start, *(index[inside] for index in rest))
        chunk[position] = 0
        digest.update(chunk.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _warn_of_differences(path: Path, target: ModelTensor, item: Saved) -> None:
    name, dtype = target.name, dtype_name(target.tensor)
    if dtype != item.dtype:
        warnings.warn(f"{path}: {name} was learned in a {item.dtype} tensor; the model's is {dtype}.", stacklevel=3)
    elif item.indices is not None and fingerprint(target.tensor, item.indices) != item.base:
        warnings.warn(
            f"{path}: {name} was learned on another base: what did not learn differs from the model's.", stacklevel=3
        )


@torch.no_grad()
def _write_values(target: ModelTensor, item: Saved) -> None:
    """Write into the plain tensor, or into both parts of a partial one."""
    if target.indices is not None and target.learned is not None:
        row_to_slot = target.indices.row_to_slot
        if item.kind == "rows" and item.indices is not None and row_to_slot is not None:
            slots = row_to_slot[item.indices.flat.to(row_to_slot.device)]  # -1: does not learn here
            target.learned[slots[slots >= 0]] = item.values.to(target.learned)[slots >= 0]
        else:  # entries: those that the file does not hold keep their learned value, in full precision
            full = target.tensor.to(target.learned.dtype, copy=True)
            scatter_(target.indices, full, target.learned)
            _write(full, item)
            target.learned.copy_(gather(target.indices, full))
    if not target.mapped:
        _write(target.tensor, item)


def _write(full: Tensor, item: Saved) -> None:
    if item.indices is not None:
        scatter_(item.indices.to(full.device), full, item.values.to(full.device))
    elif is_sharded(full):
        local_part(full).copy_(item.values[shard_slices(full)])
    else:
        writable(full).copy_(item.values)
