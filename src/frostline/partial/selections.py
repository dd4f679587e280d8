"""What may learn, as values: everything, nothing, some rows, some entries.

A selection knows nothing of a model. `train_only` asks it for a Layout once it knows the tensor: True where all of it
learns, False where none of it does, else the places that do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from frostline.errors import RowError, SelectionError, ShapeError
from frostline.partial.indices import Layout

RowsLike: TypeAlias = "Iterable[int] | Tensor | np.ndarray[Any, Any] | slice"
MaskLike: TypeAlias = "Tensor | np.ndarray[Any, Any] | Sequence[Any]"


class Selection(ABC):
    """Base of the four kinds of selection."""

    @abstractmethod
    def places(self, tensor: Tensor, padding: tuple[int, ...] = ()) -> Layout | bool:
        """What of `tensor` learns: all of it (True), none of it (False), or the places in a Layout.

        `padding` holds the `padding_idx` of each module that has the tensor.
        """

    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class All(Selection):
    """See `everything` and `nothing`."""

    learns: bool

    def places(self, tensor: Tensor, padding: tuple[int, ...] = ()) -> bool:  # noqa: D102
        return self.learns

    def __repr__(self) -> str:
        return "everything" if self.learns else "nothing"


everything = All(True)
"""The whole tensor learns."""

nothing = All(False)
"""The whole tensor stays as it is."""


@dataclass(frozen=True, eq=False)
class Rows(Selection):
    """See `rows`."""

    ids: Any
    learn_padding: bool
    dtype: torch.dtype | None

    def places(self, tensor: Tensor, padding: tuple[int, ...] = ()) -> Layout | bool:  # noqa: D102
        if tensor.ndim == 0:
            raise RowError("rows: a tensor without dimensions has no rows. Choose fl.everything or fl.nothing.")
        count = tensor.shape[0]
        ids = row_ids(self.ids, count)
        for index in padding:
            if not self.learn_padding and bool((ids == index % count).any()):
                raise RowError(
                    f"rows: row {index % count} is the padding row (padding_idx={index}), which usually does not "
                    "learn. Leave it out, or pass rows(..., learn_padding=True)."
                )
        return Layout.of_rows(ids, count, tensor.device, self.learn_padding, padding) if len(ids) else False

    def __repr__(self) -> str:
        return f"rows({_short(self.ids)})"


@dataclass(frozen=True, eq=False)
class Entries(Selection):
    """See `entries`."""

    mask: Tensor
    dtype: torch.dtype | None

    def places(self, tensor: Tensor, padding: tuple[int, ...] = ()) -> Layout | bool:  # noqa: D102
        if self.mask.shape != tensor.shape:
            raise ShapeError(
                f"entries: the mask has shape {tuple(self.mask.shape)}, the tensor {tuple(tensor.shape)}. "
                "Pass a bool mask of the tensor's own shape."
            )
        if tensor.ndim == 0:
            return bool(self.mask)
        for index in padding:
            if bool(self.mask[index].any()):
                raise ShapeError(
                    f"entries: the mask is True in row {index % tensor.shape[0]}, the padding row, which gets no "
                    "gradient from a lookup. Clear the mask there."
                )
        return Layout.of_entries(self.mask, tensor.device) if bool(self.mask.any()) else False

    def __repr__(self) -> str:
        return f"entries({int(self.mask.sum()):,} of {self.mask.numel():,})"


def rows(ids: RowsLike, *, learn_padding: bool = False, dtype: torch.dtype | None = None) -> Rows:
    """The rows of dimension 0 that learn.

    Args:
        ids: Row ids in 0 .. V-1, each once, in any order (any iterable of ints, an int tensor or array); or a bool
            mask of shape (V,); or a slice. `learned[i]` is row `ids[i]`: the caller's order is kept.
        learn_padding: Let the row at the module's `padding_idx` learn, if it is listed. Otherwise listing it is an
            error, because most people who do so did not mean to.
        dtype: dtype of the learned part; by default the tensor's own. `torch.float32` over a bfloat16 or float16
            table keeps small updates that the table's own dtype would round away.

    Returns:
        A value for `train_only`.

    Raises:
        RowError: From `train_only`, when ids are outside the table, repeated, not integers, or name the padding row.
        ShapeError: From `train_only`, when a mask is not of shape (V,).

    Cost: memory for R rows, and one int32 map of V entries, made once.

    Example:
        >>> import frostline as fl
        >>> embedding = torch.nn.Embedding(5, 2)
        >>> plan = fl.train_only(embedding, {"weight": fl.rows([4, 0])})
        >>> [tuple(p.shape) for p in plan.parameters()]
        [(2, 2)]
    """
    if isinstance(ids, Iterable) and not isinstance(ids, Tensor | np.ndarray | str | range):
        ids = list(ids)  # read once, here: what the caller does with a list or a generator later changes nothing
    return Rows(ids, learn_padding, _learnable(dtype))


def entries(mask: MaskLike, *, dtype: torch.dtype | None = None) -> Entries:
    """The single entries that learn: those where `mask` is True.

    Args:
        mask: Bool tensor, array or nested list of the tensor's own shape. True learns.
        dtype: dtype of the learned part; by default the tensor's own.

    Returns:
        A value for `train_only`.

    Raises:
        TypeError: The mask is not bool. Pass `entries(mask != 0)` for a 0/1 mask.
        ShapeError: From `train_only`, when the mask's shape is not the tensor's.

    Cost: an index of one int64 a dimension for each entry; the tensor is joined (a copy) wherever it is used.

    Example:
        >>> import frostline as fl
        >>> linear = torch.nn.Linear(2, 2)
        >>> plan = fl.train_only(linear, {"weight": fl.entries([[True, False], [False, True]])})
        >>> [tuple(p.shape) for p in plan.parameters()]
        [(2,)]
    """
    chosen = mask.detach() if isinstance(mask, Tensor) else torch.from_numpy(np.array(mask))
    if chosen.dtype != torch.bool:
        raise TypeError(f"entries: the mask is {chosen.dtype}, not bool. Pass `entries(mask != 0)` for a 0/1 mask.")
    return Entries(chosen.clone(), _learnable(dtype))


def _learnable(dtype: torch.dtype | None) -> torch.dtype | None:
    if dtype is not None and not (dtype.is_floating_point or dtype.is_complex):
        raise SelectionError(f"dtype: {dtype} cannot learn. Pass a floating-point dtype such as torch.float32.")
    return dtype


def row_ids(given: RowsLike, count: int) -> Tensor:
    """The ids that `given` stands for in a tensor of `count` rows: int64, shape (R,), each in 0 .. count - 1, once.

    Raises:
        RowError: They are outside the table, repeated, or no integers; or ShapeError, for a mask of another length.
    """
    ids = _row_ids(given, count)
    _refuse_rows_outside(ids, count)
    _refuse_repeated_rows(ids)
    return ids


def _row_ids(given: Any, count: int) -> Tensor:
    """The ids that `given` stands for in a tensor of `count` rows: int64, shape (R,)."""
    if isinstance(given, slice):
        for bound in (given.start, given.stop):
            if bound is not None and not -count <= bound <= count:
                raise RowError(f"rows: the slice ends at {bound}, outside the table. The table has {count} rows.")
        return torch.tensor(range(*given.indices(count)), dtype=torch.int64)
    if not isinstance(given, Tensor | np.ndarray | Sequence) or isinstance(given, str):
        raise RowError(f"rows: {given!r} is no list of row ids, mask or slice. Pass rows([{given!r}]) for one row.")
    ids = given.detach().cpu() if isinstance(given, Tensor) else _tensor_of(given)
    if ids.dtype == torch.bool:
        if ids.shape != (count,):
            raise ShapeError(f"rows: the mask has shape {tuple(ids.shape)}, but the table has {count} rows.")
        return ids.nonzero().squeeze(1)
    if ids.is_floating_point() or ids.is_complex() or ids.ndim != 1:
        raise RowError(
            f"rows: expected a one-dimensional list of integers, got {ids.dtype} of shape {tuple(ids.shape)}. "
            "Pass the ids as ints, or a bool mask of one entry a row."
        )
    return ids.to(torch.int64, copy=True)


def _tensor_of(given: Any) -> Tensor:
    array = np.array(given)  # a copy: negative strides and read-only arrays are fine
    if array.size == 0 and not isinstance(given, np.ndarray):
        return torch.empty(0, dtype=torch.int64)
    if array.dtype.kind not in "biu":
        raise RowError(f"rows: expected integers, got {_short(given)}. Pass the ids as ints.")
    return torch.from_numpy(array.astype(np.int64) if array.dtype.kind in "iu" else array)


def _refuse_rows_outside(ids: Tensor, count: int) -> None:
    outside = ids[(ids < 0) | (ids >= count)]
    if len(outside):
        hint = " If your ids start at 1, pass `rows - 1`." if outside.min() >= count else ""
        raise RowError(
            f"rows: {len(outside)} of {len(ids)} ids are outside the table: {_listed(outside)}. "
            f"The table has {count} rows, so ids run from 0 to {count - 1}.{hint}"
        )


def _refuse_repeated_rows(ids: Tensor) -> None:
    values, counts = torch.unique(ids, return_counts=True)
    repeated = values[counts > 1]
    if len(repeated):
        raise RowError(f"rows: ids listed more than once: {_listed(repeated)}. List each row once.")


def _listed(ids: Tensor) -> str:
    shown = ", ".join(str(i) for i in ids[:8].tolist())
    return shown if len(ids) <= 8 else f"{shown} and {len(ids) - 8} more"


def _short(value: object) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
