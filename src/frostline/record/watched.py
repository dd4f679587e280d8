"""What a Recorder records under one name: a small tensor, some rows of a table, or what a function returns.

Letters used for shapes in this file:
    V  rows of a table          R  rows that are recorded
    *  the rest of a shape

Values are copied without a graph; the tensor does not change, nor does its version counter. A partial tensor is read as
the whole tensor, with row ids of the whole table, in a dtype that holds both parts exactly (float32 if the learned part
is float32 and the table bfloat16).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from frostline.errors import PartialTensorError, RowError, SelectionError, ShapeError
from frostline.partial import PartialTensor
from frostline.partial.optimizer_guard import is_stale
from frostline.partial.selections import RowsLike, row_ids
from frostline.partial.sharded import is_sharded
from frostline.partial.tensor.indices import LearnedIndices

Source: TypeAlias = "Tensor | Callable[[], Tensor | float]"
What: TypeAlias = "Source | tuple[Source, RowsLike | Mapping[str, int]]"

LARGEST = 1 << 18  # values recorded at one step


class Watched:
    """What is recorded under one name.

    Args:
        name: Its name, for messages.
        what: A tensor; a function of no arguments that returns a tensor or a number; or a pair of one of these and the
            ids of its rows, as `fl.rows` takes them, or a mapping of words to ids.

    Attributes:
        calls_function: Whether reading it calls a function of the user.
        words: A word for each row, shape (R,): the caller's, or "row" and its id; None unless rows are recorded.
    """

    def __init__(self, name: str, what: What) -> None:
        source, rows = what if isinstance(what, tuple) and len(what) == 2 else (what, None)
        if not isinstance(source, Tensor) and not callable(source):
            raise TypeError(
                f"{name}: {type(source).__name__} cannot be recorded. Pass a tensor, a function that returns one or a "
                "number, or a pair of a tensor and row ids."
            )
        self.name = name
        self.words = [str(word) for word in rows] if isinstance(rows, Mapping) else None
        self.calls_function = not isinstance(source, Tensor)
        self._source: Source = source
        self._rows = list(rows.values()) if isinstance(rows, Mapping) else rows
        self._ids: Tensor | None = None  # checked when the table is first read
        if isinstance(source, Tensor):
            self.read()

    @torch.no_grad()
    def read(self) -> Tensor:
        """Return a copy of the current values: shape (R, *) for rows, () for a number."""
        found = self._source if isinstance(self._source, Tensor) else self._source()
        if not isinstance(found, Tensor):
            found = self._scalar(found)
        self._check(found)
        if self._rows is None:
            self._check_size(found.numel())
            return _whole(found)
        if self._ids is None:
            self._ids = self._row_ids(found)
            self.words = self.words or [f"row {row}" for row in self._ids.tolist()]
        self._check_size(len(self._ids) * (found.numel() // max(len(found), 1)))
        return _rows(found, self._ids)

    def _scalar(self, found: object) -> Tensor:
        try:
            return torch.tensor(float(found), dtype=torch.float64)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise TypeError(
                f"{self.name}: the function returned {type(found).__name__}. Let it return a tensor or a number."
            ) from None

    def _check(self, tensor: Tensor) -> None:
        if is_stale(tensor.learned if isinstance(tensor, PartialTensor) else tensor):
            raise PartialTensorError(
                f"{self.name}: a later plan has replaced this tensor. Make the Recorder after train_only, or "
                "pass a function such as `lambda: model.embed.weight`."
            )
        if is_sharded(tensor):
            raise SelectionError(
                f"{self.name}: sharded over processes. Pass a function that gathers what you want to see, such as "
                "`lambda: weight.full_tensor()[ids]`."
            )
        if tensor.is_meta or tensor.is_complex() or tensor.layout != torch.strided:
            raise SelectionError(
                f"{self.name}: a {tensor.dtype} tensor, {tensor.layout}, on {tensor.device} cannot be recorded. Pass a "
                "dense tensor of real numbers."
            )

    def _check_size(self, size: int) -> None:
        if size > LARGEST:
            raise SelectionError(
                f"{self.name}: {size:,} values at each step; the limit is {LARGEST:,}. Pass some rows, "
                f'{{"{self.name}": (weight, ids)}}, or a norm, {{"{self.name}": lambda: weight.norm()}}.'
            )

    def _row_ids(self, tensor: Tensor) -> Tensor:
        if tensor.ndim == 0:
            raise RowError(f"{self.name}: a tensor without dimensions has no rows. Pass it without ids.")
        rows: Any = self._rows
        try:
            ids = row_ids(rows, tensor.shape[0])
        except (RowError, ShapeError) as error:
            raise type(error)(f"{self.name}: {error}") from None
        if not len(ids):
            raise RowError(f"{self.name}: no row to record. Name one or more.")
        return ids


def _whole(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, PartialTensor):
        return tensor.detach().clone()
    frozen, learned, indices = _parts(tensor)
    return indices.merged(_promoted(frozen, learned), learned)


def _rows(tensor: Tensor, ids: Tensor) -> Tensor:
    """Return a copy of the rows `ids` (R,); of a partial tensor without merging it if whole rows learn."""
    if not isinstance(tensor, PartialTensor):
        return tensor.detach()[ids.to(tensor.device)]
    frozen, learned, indices = _parts(tensor)
    ids = ids.to(frozen.device)
    if indices.row_to_slot is None:
        return indices.merged(_promoted(frozen, learned), learned)[ids]
    slots = indices.row_to_slot[ids]  # -1 for a frozen row
    values = _promoted(frozen[ids], learned)
    values[slots >= 0] = learned[slots[slots >= 0]].to(values.dtype)
    return values


def _parts(tensor: PartialTensor) -> tuple[Tensor, Tensor, LearnedIndices]:
    """Return both parts without their graph, and the indices of the learned one."""
    frozen = tensor.frozen.detach()
    return frozen, tensor.learned.detach(), tensor.learned_indices.to(frozen.device)


def _promoted(frozen: Tensor, learned: Tensor) -> Tensor:
    """Return `frozen` in a dtype that holds both parts exactly."""
    return frozen.to(torch.promote_types(frozen.dtype, learned.dtype))
