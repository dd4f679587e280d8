"""One thing that a Recorder looks at: a small tensor, some rows of a table, or what a function returns.

Letters used for shapes in this file:
    V  rows of a table          R  rows that are looked at
    *  the rest of a shape

A look is a copy without a graph: nothing of the tensor changes, its version counter included. Of a partial tensor it
shows the whole one, rows by their ids in the whole table; where the learned part has more digits than the table
(float32 over bfloat16), they are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from frostline.errors import PartialTensorError, RowError, SelectionError, ShapeError
from frostline.partial import PartialTensor
from frostline.partial.indices import Layout
from frostline.partial.optimizer_guard import is_stale
from frostline.partial.selections import RowsLike, row_ids
from frostline.partial.sharded import is_sharded

Source: TypeAlias = "Tensor | Callable[[], Tensor | float]"
What: TypeAlias = "Source | tuple[Source, RowsLike | Mapping[str, int]]"

LARGEST = 1 << 18  # numbers of one look


class Watched:
    """What stands behind one name.

    Args:
        name: Its name, for messages.
        what: A tensor; a function of no arguments that returns a tensor or a number; or a pair of one of these and the
            ids of its rows, as `fl.rows` takes them, or a mapping of words to ids.

    Attributes:
        asks: Whether a function is called to look.
        words: A word for each row, shape (R,): the caller's, or "row" and its id; None unless rows are looked at.
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
        self.asks = not isinstance(source, Tensor)
        self._source: Source = source
        self._rows = list(rows.values()) if isinstance(rows, Mapping) else rows
        self._ids: Tensor | None = None  # known once the table is
        if isinstance(source, Tensor):
            self.look()

    @torch.no_grad()
    def look(self) -> Tensor:
        """A copy of the values as they are now: shape (R, *) for rows, () for a number."""
        found = self._source if isinstance(self._source, Tensor) else self._source()
        if not isinstance(found, Tensor):
            found = self._number(found)
        self._check(found)
        if self._rows is None:
            self._check_size(found.numel())
            return _whole(found)
        if self._ids is None:
            self._ids = self._row_ids(found)
            self.words = self.words or [f"row {row}" for row in self._ids.tolist()]
        self._check_size(len(self._ids) * (found.numel() // max(len(found), 1)))
        return _rows(found, self._ids)

    def _number(self, found: object) -> Tensor:
        try:
            return torch.tensor(float(found), dtype=torch.float64)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise TypeError(
                f"{self.name}: the function returned {type(found).__name__}. Let it return a tensor or a number."
            ) from None

    def _check(self, tensor: Tensor) -> None:
        if is_stale(tensor.learned if isinstance(tensor, PartialTensor) else tensor):
            raise PartialTensorError(
                f"{self.name}: a later plan has put other parts in the place of this tensor. Make the Recorder after "
                "train_only, or pass a function such as `lambda: model.embed.weight`."
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

    def _check_size(self, numbers: int) -> None:
        if numbers > LARGEST:
            raise SelectionError(
                f"{self.name}: {numbers:,} numbers at each step; {LARGEST:,} are the most. Pass some rows, "
                f'{{"{self.name}": (weight, ids)}}, or a norm, {{"{self.name}": lambda: weight.norm()}}.'
            )

    def _row_ids(self, tensor: Tensor) -> Tensor:
        if tensor.ndim == 0:
            raise RowError(f"{self.name}: a tensor without dimensions has no rows. Pass it alone.")
        rows: Any = self._rows
        try:
            ids = row_ids(rows, tensor.shape[0])
        except (RowError, ShapeError) as error:
            raise type(error)(f"{self.name}: {error}") from None
        if not len(ids):
            raise RowError(f"{self.name}: there is no row to look at. Name one or more.")
        return ids


def _whole(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, PartialTensor):
        return tensor.detach().clone()
    frozen, learned, layout = _parts(tensor)
    return layout.join(_wide(frozen, learned), learned)


def _rows(tensor: Tensor, ids: Tensor) -> Tensor:
    """The rows `ids` (R,) of `tensor`, a copy; of a partial one without joining it, where rows learn."""
    if not isinstance(tensor, PartialTensor):
        return tensor.detach()[ids.to(tensor.device)]
    frozen, learned, layout = _parts(tensor)
    ids = ids.to(frozen.device)
    if layout.slots is None:
        return layout.join(_wide(frozen, learned), learned)[ids]
    slots = layout.slots[ids]
    values = _wide(frozen[ids], learned)
    values[slots >= 0] = learned[slots[slots >= 0]].to(values.dtype)
    return values


def _parts(tensor: PartialTensor) -> tuple[Tensor, Tensor, Layout]:
    """Both parts without their graph, and where they belong."""
    frozen = tensor.frozen.detach()
    return frozen, tensor.learned.detach(), tensor.selected.to(frozen.device)


def _wide(frozen: Tensor, learned: Tensor) -> Tensor:
    """`frozen` in a dtype that holds the digits of both."""
    return frozen.to(torch.promote_types(frozen.dtype, learned.dtype))
