"""What was learned, in a file of its own: kilobytes for a few rows of a table of gigabytes.

A safetensors file. For each tensor that learns, `name` holds its values; for rows and entries `name:places` says where
they belong (int64, one column a dimension indexed). Buffers that training moved (running statistics) are there whole.
The metadata says for each tensor what it is, its shape and dtype, and the SHA-256 of everything in it that did not
learn, so that loading onto another base can be noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
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
from frostline.partial.indices import Layout, writable
from frostline.partial.model_tensors import Found, find_tensors
from frostline.partial.module import state_of
from frostline.partial.sharded import chunks, is_sharded, on_one_process, whole

_FORMAT = "frostline-learned-1"


def save_learned(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Save what learns in `model`, and nothing else.

    If FSDP2 has sharded the model, every process calls it, the first one writes, and the file is the one that a single
    process would have written. Under DDP every process has everything: let one of them save.

    Args:
        model: A module that `train_only` (or `vectors.embedding`) changed, or any ancestor of one.
        path: Where to write; conventionally ends in `.safetensors`. Written whole or not at all.

    Raises:
        LearnedFileError: Nothing in `model` learns, or the file cannot be written.

    Cost: writes what learns; reads every partial tensor once, for the SHA-256 of its frozen part. From a sharded model
    what learns is gathered, and each partial tensor passes every process once, 64 MB or so at a time.

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
    for one in find_tensors(model):
        name = one.names[0]
        if one.layout is not None and one.learned is not None:
            tensors[name] = whole(one.learned)
            tensors[f"{name}:places"] = torch.stack(one.layout.places, dim=1)
            about[name] = _describe(one.layout.kind, one.tensor) | {"base": _fingerprint(one.tensor, one.layout)}
        elif one.tensor.requires_grad:
            tensors[name] = whole(one.tensor)
            about[name] = _describe("everything", one.tensor)
    if not about:
        raise LearnedFileError("model: nothing in it learns. Call fl.train_only first.")
    for name, buffer in _moving_buffers(model):
        tensors[name] = buffer
        about[name] = _describe("buffer", buffer)
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {"format": _FORMAT, "tensors": json.dumps(about)}
    on_one_process(model, lambda: _write_whole(tensors, metadata, Path(path)))


def load_learned(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Put what `save_learned` saved into `model`, plain or partial; the plan of `model` stays as it is.

    Args:
        model: A module with the same parameter names; tied names count.
        path: A file that `save_learned` wrote.

    Raises:
        LearnedFileError: The file is not one of these, or a tensor in it fits no parameter of `model` (also a
            ValueError; it names the parameter). Nothing has been changed then.

    Warns:
        UserWarning: A tensor differs, outside the learned places, from the one that the values were learned on, or its
            dtype does.

    Cost: reads the file, and each tensor that is written to once, for its SHA-256.
    """
    path = Path(path)
    saved = _read(path)
    targets = {name: one for one in find_tensors(model) for name in one.names}
    buffers = dict(model.named_buffers())
    writes = []
    for name, item in saved.items():
        known = buffers if item.kind == "buffer" else targets
        if name not in known:
            raise LearnedFileError(f"{path}: {name} fits nothing in the model. Load it onto the model it was made for.")
        target = buffers[name] if item.kind == "buffer" else targets[name].tensor
        if is_sharded(target):
            raise LearnedFileError(f"model: {name} is sharded. Load before fully_shard.")
        if tuple(target.shape) != item.shape:
            raise LearnedFileError(
                f"{path}: {name} has shape {item.shape} in the file, but {tuple(target.shape)} in the model."
            )
        if item.kind != "buffer":
            _refuse_to_write_into_a_file(path, targets[name], item)
        writes.append((name, item, target))
    for name, item, target in writes:
        if item.kind != "buffer":
            _sync(targets[name])
        _warn_of_differences(path, name, item, target)
    for name, item, target in writes:
        if item.kind == "buffer":
            target.copy_(item.values)
        else:
            _write_values(targets[name], item)


def _refuse_to_write_into_a_file(path: Path, one: Found, item: Saved) -> None:
    if not one.mapped:
        return
    slots = one.layout.slots if one.layout is not None else None
    if item.layout is None or slots is None or bool((slots[item.layout.places[0]] < 0).any()):
        raise LearnedFileError(
            f"{path}: {one.names[0]} is mapped and never written to. Call train_only with the file's rows first."
        )


@dataclass(frozen=True)
class Saved:
    """One tensor of a file: its values, and where they belong."""

    kind: str
    shape: tuple[int, ...]
    dtype: str
    values: Tensor
    layout: Layout | None
    base: str | None


def _describe(kind: str, tensor: Tensor) -> dict[str, Any]:
    return {"kind": kind, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _moving_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Persistent buffers that training moves: of modules that learn, and running statistics that are not held."""
    for prefix, module in model.named_modules():
        state = state_of(module)
        learns = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        norm = isinstance(module, nn.modules.batchnorm._NormBase)
        if (learns or norm) and not (state is not None and state.held):
            for name, buffer in module._buffers.items():
                if buffer is not None and name not in module._non_persistent_buffers_set:
                    yield (f"{prefix}.{name}" if prefix else name), buffer


def _fingerprint(tensor: Tensor, layout: Layout) -> str:
    """SHA-256 of the bytes of `tensor`, with zeros at the learned places; chunk by chunk, never a copy of the whole."""
    digest = hashlib.sha256(str((tuple(tensor.shape), tensor.dtype)).encode())
    places = [place.cpu() for place in layout.places]
    for start, chunk in chunks(tensor):
        inside = (places[0] >= start) & (places[0] < start + len(chunk))
        index = (places[0][inside] - start, *(place[inside] for place in places[1:]))
        chunk[index] = 0
        digest.update(chunk.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write_whole(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    if not path.parent.is_dir() or path.is_dir():
        raise LearnedFileError(f"{path}: not a file in a folder that exists. Make the folder, and name a file in it.")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            temporary.touch()
            mode = temporary.stat().st_mode  # safetensors gives its files a mode that nobody else can read
            save_file(tensors, temporary, metadata=metadata)
            temporary.chmod(mode)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
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
            return {name: _read_one(file, name, item) for name, item in about.items()}
    except LearnedFileError as error:
        raise LearnedFileError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise LearnedFileError(f"{path}: damaged, or not a safetensors file ({error}).") from None


def _read_one(file: Any, name: str, item: dict[str, Any]) -> Saved:
    values, shape, layout = file.get_tensor(name), tuple(item["shape"]), None
    if item["kind"] in ("rows", "entries"):
        places = file.get_tensor(f"{name}:places")
        width = 1 if item["kind"] == "rows" else len(shape)
        expected = (len(places), *shape[1:]) if item["kind"] == "rows" else (len(places),)
        limits = torch.tensor(shape[:width])
        inside = places.dtype == torch.int64 and places.shape[1:] == (width,) and values.is_floating_point()
        inside = inside and bool(((places >= 0) & (places < limits)).all())
        if not inside or values.shape != expected or len(torch.unique(places, dim=0)) != len(places):
            raise LearnedFileError(f"{name}: its values and its places in the file do not fit its shape {shape}.")
        layout = Layout(tuple(places.unbind(1)), None)
    elif values.shape != shape:
        raise LearnedFileError(f"{name}: its values in the file do not fit its shape {shape}.")
    return Saved(item["kind"], shape, item["dtype"], values, layout, item.get("base"))


def _warn_of_differences(path: Path, name: str, item: Saved, target: Tensor) -> None:
    dtype = str(target.dtype).removeprefix("torch.")
    if item.kind == "buffer":
        return
    if dtype != item.dtype:
        warnings.warn(f"{path}: {name} was learned in a {item.dtype} tensor; the model's is {dtype}.", stacklevel=3)
    elif item.layout is not None and _fingerprint(target, item.layout) != item.base:
        warnings.warn(
            f"{path}: {name} was learned on another base: outside the learned places the model's differs.", stacklevel=3
        )


def _sync(one: Found) -> None:
    """Let learned values stand in the frozen part too, so that its fingerprint is that of the whole."""
    if one.layout is not None and one.learned is not None and not one.mapped:
        one.layout.put(writable(one.tensor), one.learned.detach())


@torch.no_grad()
def _write_values(one: Found, item: Saved) -> None:
    """Write into the plain tensor, or into both parts of a partial one."""
    if one.layout is not None and one.learned is not None:
        if item.kind == "rows" and item.layout is not None and one.layout.slots is not None:
            slots = one.layout.slots[item.layout.places[0].to(one.layout.slots.device)]  # -1: does not learn here
            one.learned[slots[slots >= 0]] = item.values.to(one.learned)[slots >= 0]
        else:  # entries: what the file does not hold keeps its learned value, in full precision
            full = one.tensor.to(one.learned.dtype, copy=True)
            one.layout.put(full, one.learned)
            _put(full, item)
            one.learned.copy_(one.layout.take(full))
    if not one.mapped:
        _put(writable(one.tensor), item)


def _put(whole: Tensor, item: Saved) -> None:
    if item.layout is None:
        whole.copy_(item.values)
    else:
        item.layout.to(whole.device).put(whole, item.values.to(whole.device))
