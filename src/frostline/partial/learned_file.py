"""Save and load only what was learned: kilobytes for a few rows of a table of gigabytes.

The format is a safetensors file. For each tensor that learns, `name` holds the learned values; for rows and entries
`name:places` holds their indices (int64, one column for each indexed dimension). Buffers that training changed (running
statistics) are saved whole. The metadata holds the kind, shape and dtype of each tensor, and the SHA-256 of everything
in the tensor that did not learn, so that loading into another base model can be detected.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from frostline.errors import LearnedFileError
from frostline.files import replacing
from frostline.partial.model_tensors import ModelTensor, find_tensors, state_of
from frostline.partial.rollback import values_restored_on_error
from frostline.partial.sharded import chunks, full_tensor, is_sharded, on_one_process
from frostline.partial.tensor.indices import LearnedIndices
from frostline.partial.tensor.memory import writable

_FORMAT = "frostline-learned-1"


def save_learned(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Save what learns in `model`, and nothing else.

    If FSDP2 has sharded the model, every process must call this; the first one writes the same file that a single
    process would have written. Under DDP every process has all values: call it on one of them.

    Args:
        model: A module that `train_only` (or `vectors.embedding`) changed, or any ancestor of one.
        path: Where to write; conventionally ends in `.safetensors`. Written whole or not at all.

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
        ...     fl.load_learned(other, f"{folder}/rows.safetensors")
        >>> other.weight[[1, 4]].tolist()
        [[7.0, 7.0], [7.0, 7.0]]
    """
    tensors: dict[str, Tensor] = {}
    about: dict[str, dict[str, Any]] = {}
    for model_tensor in find_tensors(model):
        name, tensor = model_tensor.name, model_tensor.tensor
        learned, indices = model_tensor.learned, model_tensor.indices
        if indices is not None and learned is not None:
            tensors[name] = full_tensor(learned)
            tensors[f"{name}:places"] = torch.stack(indices.index, dim=1)
            about[name] = _describe(indices.kind, tensor) | {"base": _fingerprint(tensor, indices)}
        elif tensor.requires_grad:
            tensors[name] = full_tensor(tensor)
            about[name] = _describe("everything", tensor)
    if not about:
        raise LearnedFileError("model: nothing in it learns. Call fl.train_only first.")
    for name, buffer in _trained_buffers(model):
        tensors[name] = buffer
        about[name] = _describe("buffer", buffer)
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {"format": _FORMAT, "tensors": json.dumps(about)}
    on_one_process(model, lambda: _write_file(tensors, metadata, Path(path)))


def load_learned(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load what `save_learned` saved into `model`, plain or partial; the plan of `model` does not change.

    Args:
        model: A module with the same parameter names; any name of a tied tensor will do.
        path: A file that `save_learned` wrote.

    Raises:
        LearnedFileError: The file was not written by `save_learned`, or a tensor in it matches no parameter of `model`.
            It is also a ValueError, and names the parameter.
            Whatever is raised, Ctrl-C included, the model is as it was before.

    Warns:
        UserWarning: Elements that did not learn, or the dtype, differ from those of the tensor in which the values were
            learned.

    Cost: reads the file, and each tensor that is written to once, for its SHA-256; a copy of what it overwrites, until
        it returns.
    """
    path = Path(path)
    saved = _read(path)
    targets = {name: tensor for tensor in find_tensors(model) for name in tensor.names}
    buffers = dict(model.named_buffers())
    writes = []
    for name, item in saved.items():
        known = buffers if item.kind == "buffer" else targets
        if name not in known:
            raise LearnedFileError(f"{path}: the model has no {name}. Load it into the model it was made for.")
        target = buffers[name] if item.kind == "buffer" else targets[name].tensor
        if is_sharded(target):
            raise LearnedFileError(f"model: {name} is sharded. Load before fully_shard.")
        if tuple(target.shape) != item.shape:
            raise LearnedFileError(
                f"{path}: {name} has shape {item.shape} in the file, but {tuple(target.shape)} in the model."
            )
        if item.kind != "buffer":
            _check_mapped(path, targets[name], item)
        writes.append((name, item, target))
    for name, item, target in writes:
        if item.kind != "buffer":
            _sync(targets[name])
        _warn_of_differences(path, name, item, target)
    written = [each for name, item, target in writes for each in _written(item, target, targets.get(name))]
    with values_restored_on_error(written):
        for name, item, target in writes:
            if item.kind == "buffer":
                target.copy_(item.values)
            else:
                _write_values(targets[name], item)


def _written(item: Saved, target: Tensor, owner: ModelTensor | None) -> list[tuple[Tensor, tuple[Tensor, ...] | None]]:
    """Return the tensors to which loading `item` writes, each with its index there; None for all of it."""
    index = None if item.indices is None else item.indices.index
    whole = [] if owner is not None and owner.mapped else [(target, index)]
    return whole if owner is None or owner.learned is None else [*whole, (owner.learned, None)]


def _check_mapped(path: Path, target: ModelTensor, item: Saved) -> None:
    """Raise if loading `item` would write to a mapped table."""
    if not target.mapped:
        return
    row_to_slot = target.indices.row_to_slot if target.indices is not None else None
    if item.indices is None or row_to_slot is None or bool((row_to_slot[item.indices.index[0]] < 0).any()):
        raise LearnedFileError(
            f"{path}: {target.name} is mapped and never written to. Call train_only with the file's rows first."
        )


@dataclass(frozen=True)
class Saved:
    """One tensor of a file: its values and their indices; `base` is the SHA-256 of what did not learn."""

    kind: str
    shape: tuple[int, ...]
    dtype: str
    values: Tensor
    indices: LearnedIndices | None
    base: str | None


def _describe(kind: str, tensor: Tensor) -> dict[str, Any]:
    return {"kind": kind, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


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


def _fingerprint(tensor: Tensor, indices: LearnedIndices) -> str:
    """Return the SHA-256 of the bytes of `tensor`, with zeros at the learned indices; works chunk by chunk."""
    digest = hashlib.sha256(str((tuple(tensor.shape), tensor.dtype)).encode())
    first, *rest = (index.cpu() for index in indices.index)
    for start, chunk in chunks(tensor):
        inside = (first >= start) & (first < start + len(chunk))
        position = (first[inside] - start, *(index[inside] for index in rest))
        chunk[position] = 0
        digest.update(chunk.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write_file(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    try:
        if not path.parent.is_dir() or path.is_dir():
            raise LearnedFileError(f"{path}: expected a file in a folder that exists. Make the folder, or name a file.")
        with replacing(path) as unfinished:
            save_file(tensors, unfinished, metadata=metadata)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise LearnedFileError(f"{path}: cannot be written: {why}. Name another file.") from None


def _read(path: Path) -> dict[str, Saved]:
    if path.is_dir():
        raise LearnedFileError(f"{path}: a folder. Pass the file that save_learned wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise LearnedFileError(f"{path}: not a file that save_learned wrote (format {metadata.get('format')}).")
            about = json.loads(metadata["tensors"])
            return {name: _read_tensor(file, name, item) for name, item in about.items()}
    except LearnedFileError as error:
        raise LearnedFileError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise LearnedFileError(f"{path}: damaged, or not a safetensors file ({error}).") from None


def _read_tensor(file: Any, name: str, item: dict[str, Any]) -> Saved:
    values, shape, indices = file.get_tensor(name), tuple(item["shape"]), None
    if item["kind"] in ("rows", "entries"):
        stacked = file.get_tensor(f"{name}:places")
        width = 1 if item["kind"] == "rows" else len(shape)
        expected = (len(stacked), *shape[1:]) if item["kind"] == "rows" else (len(stacked),)
        limits = torch.tensor(shape[:width])
        valid = stacked.dtype == torch.int64 and stacked.shape[1:] == (width,) and values.is_floating_point()
        valid = valid and bool(((stacked >= 0) & (stacked < limits)).all())
        if not valid or values.shape != expected or len(torch.unique(stacked, dim=0)) != len(stacked):
            raise LearnedFileError(f"{name}: its values and indices in the file do not match its shape {shape}.")
        indices = LearnedIndices(tuple(stacked.unbind(1)), None)
    elif values.shape != shape:
        raise LearnedFileError(f"{name}: its values in the file do not match its shape {shape}.")
    return Saved(item["kind"], shape, item["dtype"], values, indices, item.get("base"))


def _warn_of_differences(path: Path, name: str, item: Saved, target: Tensor) -> None:
    dtype = str(target.dtype).removeprefix("torch.")
    if item.kind == "buffer":
        return
    if dtype != item.dtype:
        warnings.warn(f"{path}: {name} was learned in a {item.dtype} tensor; the model's is {dtype}.", stacklevel=3)
    elif item.indices is not None and _fingerprint(target, item.indices) != item.base:
        warnings.warn(
            f"{path}: {name} was learned on another base: what did not learn differs from the model's.", stacklevel=3
        )


def _sync(target: ModelTensor) -> None:
    """Copy learned values into the frozen part too, so that its fingerprint is that of the full tensor."""
    if target.memory is not None and target.learned is not None:
        target.memory.sync(target.tensor, target.learned)


@torch.no_grad()
def _write_values(target: ModelTensor, item: Saved) -> None:
    """Write into the plain tensor, or into both parts of a partial one."""
    if target.indices is not None and target.learned is not None:
        row_to_slot = target.indices.row_to_slot
        if item.kind == "rows" and item.indices is not None and row_to_slot is not None:
            slots = row_to_slot[item.indices.index[0].to(row_to_slot.device)]  # -1: does not learn here
            target.learned[slots[slots >= 0]] = item.values.to(target.learned)[slots >= 0]
        else:  # entries: those that the file does not hold keep their learned value, in full precision
            full = target.tensor.to(target.learned.dtype, copy=True)
            target.indices.scatter_(full, target.learned)
            _write(full, item)
            target.learned.copy_(target.indices.gather(full))
    if not target.mapped:
        _write(writable(target.tensor), item)


def _write(full: Tensor, item: Saved) -> None:
    if item.indices is None:
        full.copy_(item.values)
    else:
        item.indices.to(full.device).scatter_(full, item.values.to(full.device))
