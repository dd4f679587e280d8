"""List the tensors of a checkpoint without reading them: each is mapped, or read when it is its turn.

What is understood, by what stands in it and not by its name:
    safetensors             a file; several with an index, of Hugging Face or diffusers
    torch.save              a file, or several with an index; loaded with `weights_only`, so it runs no code
    a folder                of Hugging Face, with one of these; or of torch.distributed.checkpoint (dcp.py)
    BASE+FILE               a checkpoint, and over it a file of `save_learned` or of `Changes.save` (overlay.py)

Of nested dictionaries, `{"model": {...}, "optimizer": {...}}`, the model's is taken; of others names are joined by
dots.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from frostline.changes import dcp
from frostline.changes.state import State, StateTensor, check_plain, identity
from frostline.errors import CheckpointError

LEARNED = "frostline-learned-"  # how the format of a file of learned values or changes begins
_INDEXES = ("model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json")
_FILES = ("model.safetensors", "diffusion_pytorch_model.safetensors", "adapter_model.safetensors")
_TORCH = ("pytorch_model.bin.index.json", "pytorch_model.bin")
_PAGE, _MADV_DONTNEED = 4096, 4


def read_checkpoint(path: str | os.PathLike[str]) -> State:
    """Return the tensors of a checkpoint.

    Raises:
        CheckpointError: There is no such file; or it is damaged, nothing of the above, or holds other objects.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder. Check the path.")
    try:
        if (path / dcp.METADATA).is_file():
            return dcp.read(path)
        file = main_file(path) if path.is_dir() else path
        return _read_index(file) if file.name.endswith(".index.json") else _read_file(file)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: cannot be read: {error.strerror or error}.") from None
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: damaged, or not a checkpoint ({reason}). Copy it again.") from None


def main_file(folder: Path) -> Path:
    """Return the file of a folder that holds the model: an index where there is one."""
    for name in (*_INDEXES, *_FILES, *_TORCH):
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.glob("*.safetensors.index.json")) or sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        what = f"{len(found)} safetensors files and no index" if found else "no safetensors, .bin or .metadata in it"
        raise CheckpointError(f"{folder}: {what}; expected the folder of one model. Name a file.")
    return found[0]


def is_learned_file(path: Path) -> bool:
    """Return whether `path` is a file of `save_learned` or `Changes.save`."""
    try:
        with safe_open(path, framework="pt") as file:
            return str((file.metadata() or {}).get("format")).startswith(LEARNED)
    except (OSError, SafetensorError):
        return False


def weight_map(index: Path) -> dict[str, str]:
    """Return the names of an index file -> the file beside it that holds the tensor."""
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        valid = all(isinstance(file, str) and Path(file).name == file for file in files.values())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not an index of shards ({error}). Copy it again.") from None
    if not valid:
        raise CheckpointError(f"{index}: names a shard outside its own folder. Copy it again.")
    return dict(files)


def _read_index(index: Path) -> State:
    files = weight_map(index)
    shards: dict[str, State] = {}
    for file in dict.fromkeys(files.values()):
        if not (index.parent / file).is_file():
            raise CheckpointError(f"{index}: names {file}, which is not there. Copy the folder again.")
        shards[file] = _read_file(index.parent / file)
    by_name = {file: {name: t for t in shard.values() for name in t.names} for file, shard in shards.items()}
    missing = [name for name, file in files.items() if name not in by_name[file]]
    if missing:
        raise CheckpointError(f"{index}: {missing[0]} is not in {files[missing[0]]}. Copy the folder again.")
    return {tensor.name: tensor for shard in shards.values() for tensor in shard.values()}


def _read_file(path: Path) -> State:
    if zipfile.is_zipfile(path) or not _looks_like_safetensors(path):
        return _read_torch(path)
    if is_learned_file(path):
        raise CheckpointError(f"{path}: holds what was learned or changed, not a model. Write BASE+{path.name}.")
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    release = _releaser(path)
    return {name: _of_tensor((name,), tensor, release) for name, tensor in tensors.items()}


def _looks_like_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{"


def _read_torch(path: Path) -> State:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        why = "holds objects other than tensors, which would run code" if "weights_only" in str(error) else "damaged"
        raise CheckpointError(f"{path}: {why}. Save its state_dict(), or use safetensors.") from None
    if isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in dcp.MODEL_KEYS if isinstance(loaded.get(key), Mapping)), loaded)
        loaded = inner if any(isinstance(value, Tensor) for value in inner.values()) else loaded
    found: dict[object, tuple[list[str], Tensor]] = {}
    for name, tensor in _flattened("", loaded):
        check_plain(f"{path}: {name}", tensor)
        found.setdefault(identity(tensor), ([], tensor))[0].append(name)
    if not found:
        raise CheckpointError(f"{path}: holds no tensors. Pass a checkpoint.")
    release = _releaser(path)
    return {names[0]: _of_tensor(tuple(names), tensor, release) for names, tensor in found.values()}


def _flattened(prefix: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested dictionaries and lists with their names, joined by dots."""
    if isinstance(value, Tensor):
        yield prefix, value.detach()
    elif isinstance(value, Mapping | list | tuple):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _flattened(f"{prefix}.{key}" if prefix else str(key), inner)


def _of_tensor(names: tuple[str, ...], tensor: Tensor, release: Callable[[Tensor], None]) -> StateTensor:
    return StateTensor(names, tensor.dtype, tuple(tensor.shape), lambda: tensor, release=release)


def _releaser(path: Path) -> Callable[[Tensor], None]:
    """Return a function that gives back the pages of a tensor that is mapped from this file, so memory stays small.

    Only pages inside a mapping of the file are given back, and they are read again if they are needed.
    """
    maps = Path("/proc/self/maps")
    if sys.platform != "linux" or not maps.is_file():
        return lambda tensor: None
    extents = []
    for line in maps.read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == str(path.resolve()):
            extents.append(tuple(int(end, 16) for end in fields[0].split("-")))
    madvise = ctypes.CDLL(None).madvise

    def release(tensor: Tensor) -> None:
        start, stop = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
        first, last = start // _PAGE * _PAGE, -(-stop // _PAGE) * _PAGE
        for low, high in extents:
            if low <= start < high:
                size = min(last, high) - first
                madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), ctypes.c_int(_MADV_DONTNEED))

    return release
