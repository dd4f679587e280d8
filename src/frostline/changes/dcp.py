"""Read a folder of torch.distributed.checkpoint: one tensor at a time, put together from its shards.

Its `.metadata` is a pickle. It is read by an unpickler that admits the classes that such a file is made of and nothing
else, so it runs no code; the shards are read by `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import importlib
import io
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frostline.changes.state import StateTensor
from frostline.errors import CheckpointError

METADATA = ".metadata"
MODEL_KEYS = ("model", "state_dict", "model_state_dict")  # of a dictionary that has more than the model
_META, _FILES = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"
_ADMITTED = {
    *(
        (_META, name)
        for name in ("Metadata", "MetadataIndex", "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING")
    ),
    *((_META, name) for name in ("TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata")),
    *((_FILES, name) for name in ("_StorageInfo", "_StoragePrefix")),
    *(("pathlib", name) for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *(("torch.serialization", "_get_layout"), ("torch", "Size"), ("collections", "OrderedDict")),
}


class _Unpickler(pickle.Unpickler):
    """Loads the classes of `_ADMITTED` and the names of torch's dtypes."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class of the closed list; refuse every other."""
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return getattr(importlib.import_module(module), name)


def read(folder: Path) -> dict[str, StateTensor]:
    """Return the tensors of the folder: of a model that was saved under a key of its own, under their own names.

    Raises:
        CheckpointError: Its metadata names other classes, or a shard is missing.
    """
    path = folder / METADATA
    try:
        with path.open("rb") as file:
            metadata = _Unpickler(file).load()
        listed = dict(metadata.state_dict_metadata)
        stored = {(index.fqn, _offset(index.offset)): info for index, info in metadata.storage_data.items()}
    except (pickle.UnpicklingError, AttributeError, EOFError, ValueError, TypeError, ImportError, IndexError) as error:
        raise CheckpointError(f"{path}: not the metadata of torch.distributed.checkpoint ({error}).") from None
    found = {}
    for name, about in listed.items():
        if hasattr(about, "chunks"):
            parts = [(chunk, stored.get((name, _offset(chunk.offsets)))) for chunk in about.chunks]
            for _, info in parts:
                _check(folder, name, info)
            dtype, shape = about.properties.dtype, tuple(about.size)
            found[name] = StateTensor((name,), dtype, shape, _Reader(folder, name, dtype, shape, parts))
    return _of_model(found, metadata.planner_data)


def _of_model(tensors: dict[str, StateTensor], paths: Any) -> dict[str, StateTensor]:
    """Return the tensors of the model, if they are part of a larger dictionary; DCP notes where each was in it."""
    if not isinstance(paths, dict):
        return tensors
    for key in MODEL_KEYS:
        inside = {n: paths[n] for n in tensors if len(paths.get(n, ())) > 1 and paths[n][0] == key}
        if inside:
            names = {name: ".".join(map(str, path[1:])) for name, path in inside.items()}
            return {new: replace(tensors[name], names=(new,)) for name, new in names.items()}
    return tensors


class _Reader:
    """Reads one tensor: puts its shards together."""

    def __init__(self, folder: Path, name: str, dtype: torch.dtype, shape: tuple[int, ...], parts: Any) -> None:
        self._folder, self._name, self._dtype, self._shape, self._parts = folder, name, dtype, shape, parts

    def __call__(self) -> Tensor:
        """Return the whole tensor."""
        full = torch.empty(self._shape, dtype=self._dtype)
        for chunk, info in self._parts:
            path = self._folder / info.relative_path
            with path.open("rb") as file:
                file.seek(info.offset)
                blob = io.BytesIO(file.read(info.length))
            try:
                shard = torch.load(blob, map_location="cpu", weights_only=True)
            except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
                raise CheckpointError(f"{path}: {self._name} in it is damaged ({str(error)[:80]}).") from None
            if tuple(shard.shape) != tuple(chunk.sizes) or shard.dtype != self._dtype:
                raise CheckpointError(f"{path}: {self._name} in it has another shape or dtype than its metadata says.")
            full[tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))] = shard.detach()
        return full


def _offset(offset: Any) -> tuple[int, ...]:
    return () if offset is None else tuple(offset)


def _check(folder: Path, name: str, info: Any) -> None:
    problem = ""
    if info is None or not (folder / info.relative_path).is_file():
        problem = "a shard of it is missing"
    elif Path(info.relative_path).name != info.relative_path:
        problem = "its shard lies outside the folder"
    elif getattr(info, "transform_descriptors", None):
        problem = "its shards are compressed, which is not read here"
    if problem:
        raise CheckpointError(f"{folder}: {name}: {problem}. Copy the folder again, or save it uncompressed.")
