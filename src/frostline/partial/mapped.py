"""An embedding over a memory-mapped file: shared by all processes of a machine, never copied, never written to.

Letters used for shapes in this file:
    V  rows of the table          D  width of a row

A mapped table is not a Parameter. It is not among `parameters()`, so no optimizer, no DDP and no broadcast ever touches
its pages. Only the rows that `train_only` names are copied into memory, as the learned part, and learn there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from frostline.errors import FileError, ShapeError
from frostline.partial.model_tensors import MappedTable, State
from frostline.partial.module import partial_class


def mapped_embedding(
    path: str | os.PathLike[str],
    name: str | None = None,
    *,
    shape: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
    padding_idx: int | None = None,
    sparse: bool = False,
) -> nn.Embedding:
    """Return an nn.Embedding over a table that stays in its file.

    Nothing of it learns until `train_only` names rows: `{"embed.weight": fl.rows(ids, dtype=torch.float32)}` copies
    those rows into memory, here in float32, whatever the dtype of the table.

    Args:
        path: A .safetensors file, or a raw file of V x D values in the machine's byte order.
        name: The tensor in a safetensors file. May be left out if the file has only one with two dimensions.
        shape: (V, D) of a raw file; left out for safetensors.
        dtype: dtype of a raw file.
        padding_idx: As in nn.Embedding.
        sparse: As in nn.Embedding: the gradient holds only the learned rows that a step used.

    Returns:
        nn.Embedding(V, D), on the CPU, whose weight is not among its parameters until rows of it learn. It can be
        deep-copied and pickled (the copy maps the same file), and its `state_dict()` holds the full values: a copy in
        memory, once rows learn. Loading a checkpoint reaches the learned rows; frozen ones must equal the file's.

    Raises:
        FileError: The file is not a safetensors file, has no such tensor, or its size does not match `shape`.
        ShapeError: The tensor does not have two dimensions.

    Cost: the time to open does not depend on V; a step reads the pages of its rows; memory for the learned rows, and an
        int32 map of V entries once rows learn. The file must not change while it is mapped.

    Example:
        >>> import frostline as fl, tempfile
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"table": torch.eye(4).half()}, f"{folder}/table.safetensors")
        ...     embed = fl.mapped_embedding(f"{folder}/table.safetensors")
        >>> list(embed.parameters())
        []
        >>> plan = fl.train_only(embed, {"weight": fl.rows([2], dtype=torch.float32)})
        >>> [(tuple(p.shape), p.dtype) for p in plan.parameters()]
        [((1, 4), torch.float32)]
    """
    path = Path(path).absolute()
    table = open_raw(path, shape, dtype) if shape is not None else open_safetensors(path, name)
    if table.tensor.ndim != 2:
        raise ShapeError(
            f"{path}: the tensor has shape {tuple(table.tensor.shape)}; an embedding needs two dimensions."
        )
    rows, width = table.tensor.shape
    embedding = nn.Embedding(rows, width, padding_idx=padding_idx, sparse=sparse, _weight=table.tensor)
    del embedding._parameters["weight"]
    embedding.__dict__["_frostline"] = State(mapped={"weight": table})
    cls: Any = partial_class(nn.Embedding, ("weight",))
    embedding.__class__ = cls
    return embedding


def open_safetensors(path: Path, name: str | None) -> MappedTable:
    """Map a tensor of a safetensors file; see `mapped_embedding`. Pickles of a MappedTable call this."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if name is None:
                tables = [key for key in names if len(file.get_slice(key).get_shape()) == 2]
                if len(tables) != 1:
                    raise FileError(f"{path}: {len(tables)} tensors have two dimensions. Pass name=, one of {names}.")
                (name,) = tables
            if name not in names:
                raise FileError(f"{path}: has no tensor {name!r}. Pass name=, one of {names}.")
            return MappedTable(file.get_tensor(name), open_safetensors, (path, name))
    except SafetensorError as error:
        raise FileError(f"{path}: not a safetensors file ({error}). Pass shape=(V, D) for a raw file.") from None


def open_raw(path: Path, shape: tuple[int, int], dtype: torch.dtype) -> MappedTable:
    """Map a raw file; see `mapped_embedding`. Pickles of a MappedTable call this."""
    count = shape[0] * shape[1]
    size, expected = path.stat().st_size, count * dtype.itemsize
    if min(shape) < 1 or size != expected:
        raise FileError(f"{path}: {size:,} bytes, but {shape} of {dtype} takes {expected:,}. Correct shape or dtype.")
    tensor = torch.from_file(str(path), shared=False, size=count, dtype=dtype).view(shape)
    return MappedTable(tensor, open_raw, (path, shape, dtype))
