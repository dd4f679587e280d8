"""What may learn, as values: everything, nothing, some rows, some entries.

A selection knows no model. Once `train_only` knows the tensor, it asks the selection what that means there: True where
the whole tensor learns, False where nothing of it does, else the LearnedIndices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import numpy as np
import torch
from torch import Tensor

from frostline.errors import RowError, SelectionError, ShapeError
from frostline.partial.tensor.indices import LearnedIndices
from frostline.printing import listed

RowsLike: TypeAlias = "Iterable[int] | Tensor | np.ndarray[Any, Any] | slice"
MaskLike: TypeAlias = "Tensor | np.ndarray[Any, Any] | Sequence[Any]"


class Selection(ABC):
    """Base of the four kinds of selection."""

    dtype: torch.dtype | None = None

    @abstractmethod
    def resolve(self, tensor: Tensor, padding: tuple[int, ...] = ()) -> LearnedIndices | bool:
        """Return what of `tensor` learns: all of it (True), none of it (False), or some LearnedIndices.

        `padding` holds the `padding_idx` of each module that has the tensor.
        """


@dataclass(frozen=True)
class All(Selection):
    """See `everything` and `nothing`."""

    learns: bool

    def resolve(self, tensor: Tensor, padding: tuple[int, ...] = ()) -> bool:  # noqa: D102
        return self.learns

    def __call__(self, *args: object) -> NoReturn:
        """Raise: it is a value, but `rows` and `entries` beside it are functions."""
        raise TypeError(f"fl.{self} takes no parentheses. Write fl.{self}.")

    def __repr__(self) -> str:
        return "everything" if self.learns else "nothing"


everything = All(True)
"""The whole tensor learns."""

nothing = All(False)
"""The whole tensor is frozen."""


@dataclass(frozen=True, eq=False)
class Rows(Selection):
    """See `rows`."""

    ids: Any
    learn_padding: bool
    dtype: torch.dtype | None

    def resolve(self, tensor: Tensor, padding: tuple[int, ...] = ()) -> LearnedIndices | bool:  # noqa: D102
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
        return LearnedIndices.from_rows(ids, count, tensor.device, self.learn_padding, padding) if len(ids) else False

    def __repr__(self) -> str:
        return f"rows({_short(self.ids)})"


@dataclass(frozen=True, eq=False)
class Entries(Selection):
    """See `entries`."""

    mask: Tensor
    dtype: torch.dtype | None

    def resolve(self, tensor: Tensor, padding: tuple[int, ...] = ()) -> LearnedIndices | bool:  # noqa: D102
        if self.mask.shape != tensor.shape:
            raise ShapeError(
                f"entries: the mask has shape {tuple(self.mask.shape)}, the tensor {tuple(tensor.shape)}. "
                f"{_entries_fix(self.mask, tensor)}"
            )
        if tensor.ndim == 0:
            return bool(self.mask)
        for index in padding:
            if bool(self.mask[index].any()):
                raise ShapeError(
                    f"entries: the mask is True in row {index % tensor.shape[0]}, the padding row, which gets no "
                    "gradient from a lookup. Clear the mask there."
                )
        return LearnedIndices.from_entries(self.mask, tensor.device) if bool(self.mask.any()) else False

    def __repr__(self) -> str:
        return f"entries({int(self.mask.sum()):,} of {self.mask.numel():,})"


def rows(ids: RowsLike, *, learn_padding: bool = False, dtype: torch.dtype | None = None) -> Rows:
    """Return a selection of rows, indices of dimension 0: they learn.

    Args:
        ids: Row ids in 0 .. V-1, each once, in any order (any iterable of ints, an int tensor or array); or a bool
            mask of shape (V,); or a slice. `learned[i]` is row `ids[i]`: the caller's order is kept.
        learn_padding: Let the row at the module's `padding_idx` learn, if it is listed. By default listing it is an
            error, because it is usually listed by mistake.
        dtype: dtype of the learned part; by default the tensor's own. `torch.float32` over a bfloat16 or float16
            table keeps small updates that the table's own dtype would round away.

    Returns:
        A selection for `train_only`.

    Raises:
        RowError: From `train_only`, if ids are outside the table, repeated, not integers, or name the padding row.
        ShapeError: From `train_only`, if a mask is not of shape (V,).

    Cost: memory for R rows, and one int32 map of V entries, made once.

    Example:
        >>> import frostline as fl
        >>> embedding = torch.nn.Embedding(5, 2)
        >>> plan = fl.train_only(embedding, {"weight": fl.rows([4, 0])})
        >>> [tuple(p.shape) for p in plan.parameters()]
        [(2, 2)]
    """
    _check_dtype(dtype)
    if isinstance(ids, Iterable) and not isinstance(ids, Tensor | np.ndarray | str | range):
        ids = list(ids)  # a copy: a generator can be read once only, and the caller may change a list later
    return Rows(ids, learn_padding, dtype)


def entries(mask: MaskLike, *, dtype: torch.dtype | None = None) -> Entries:
    """Return a selection of single entries: those where `mask` is True learn.

    Args:
        mask: Bool tensor, array or nested list of the tensor's own shape. True learns.
        dtype: dtype of the learned part; by default the tensor's own.

    Returns:
        A selection for `train_only`.

    Raises:
        TypeError: The mask is not bool. Pass `entries(mask != 0)` for a 0/1 mask.
        ShapeError: From `train_only`, if the mask's shape is not the tensor's.

    Cost: one int64 per dimension for each learned entry, and one for its place in memory. A product computes the
        gradient of the entries alone, up to 15 % of them; other operations that of the whole tensor.

    Example:
        >>> import frostline as fl
        >>> linear = torch.nn.Linear(2, 2)
        >>> plan = fl.train_only(linear, {"weight": fl.entries([[True, False], [False, True]])})
        >>> [tuple(p.shape) for p in plan.parameters()]
        [(2,)]
    """
    _check_dtype(dtype)
    chosen = mask.detach() if isinstance(mask, Tensor) else _to_mask(mask)
    if chosen.layout != torch.strided:
        raise TypeError("entries: the mask is a sparse tensor. Pass entries(mask.to_dense() != 0).")
    if chosen.dtype != torch.bool:
        raise TypeError(
            f"entries: the mask is {chosen.dtype}, not bool. Pass `entries(mask != 0)` for a 0/1 mask. "
            "Whole rows are chosen by `rows(ids)`."
        )
    return Entries(chosen.clone(), dtype)


def _to_mask(mask: Any) -> Tensor:
    try:
        array = np.array(mask)
    except ValueError:  # rows of different lengths
        array = np.array(None)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"entries: expected a bool mask of the tensor's shape, got {_short(mask)}. Pass a bool tensor.")
    return torch.from_numpy(array)


def _entries_fix(mask: Tensor, tensor: Tensor) -> str:
    """Return what to pass instead of a mask of another shape than the tensor."""
    if tensor.ndim > 1 and mask.shape == tensor.shape[:1]:
        return "For whole rows pass fl.rows(mask)."
    if tensor.ndim > 1 and mask.ndim == tensor.ndim and mask.shape == (len(tensor), *[1] * (tensor.ndim - 1)):
        return "For whole rows pass fl.rows(mask.flatten())."
    sizes = zip(mask.shape[::-1], tensor.shape[::-1], strict=False)
    if 1 <= mask.ndim <= tensor.ndim and all(size in (1, full) for size, full in sizes):
        return f"Pass fl.entries(mask.expand{tuple(tensor.shape)})."
    if mask.ndim == 2 and mask.T.shape == tensor.shape:
        return "Pass fl.entries(mask.T)."
    return "Pass a bool mask of the tensor's own shape."


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype is not None and not (dtype.is_floating_point or dtype.is_complex):
        raise SelectionError(f"dtype: {dtype} cannot learn. Pass a floating-point dtype such as torch.float32.")


def row_ids(given: RowsLike, count: int) -> Tensor:
    """Return the ids that `given` lists, int64, shape (R,): each in 0 .. count - 1, none twice.

    Args:
        given: A list, tensor or array of ids, a bool mask of shape (count,), or a slice.
        count: Rows of the table.

    Raises:
        RowError: Ids are outside the table, repeated, or not integers.
        ShapeError: A mask is not of shape (count,).
    """
    ids = _to_ids(given, count)
    _check_range(ids, count)
    _check_distinct(ids)
    return ids


def _to_ids(given: Any, count: int) -> Tensor:
    """Return `given` as int64 ids, shape (R,), which may still be out of range or repeated."""
    if isinstance(given, slice):
        for bound in (given.start, given.stop):
            if bound is not None and not -count <= bound <= count:
                raise RowError(f"rows: the slice ends at {bound}, outside the table. The table has {count} rows.")
        return torch.tensor(range(*given.indices(count)), dtype=torch.int64)
    if not isinstance(given, Tensor | np.ndarray | Sequence) or isinstance(given, str):
        raise RowError(
            f"rows: expected a list of row ids, a bool mask or a slice, got {given!r}. "
            f"Pass rows([{given!r}]) for a single row."
        )
    ids = given.detach().cpu() if isinstance(given, Tensor) else _to_tensor(given)
    if ids.layout != torch.strided:
        raise RowError("rows: the ids are a sparse tensor. Pass rows(ids.to_dense()).")
    if ids.dtype == torch.bool:
        if ids.shape != (count,):
            fix = "Pass a mask of one value a row; single entries are chosen by fl.entries(mask)."
            if ids.ndim > 1 and ids.numel() == count:
                fix = "Pass rows(mask.flatten())."
            raise ShapeError(f"rows: the mask has shape {tuple(ids.shape)}, but the table has {count} rows. {fix}")
        return ids.nonzero().squeeze(1)
    if ids.is_floating_point() or ids.is_complex() or ids.ndim != 1:
        raise RowError(
            f"rows: expected a one-dimensional list of integers, got {ids.dtype} of shape {tuple(ids.shape)}. "
            "Pass the ids as ints, or a bool mask of one entry a row."
        )
    return ids.to(torch.int64, copy=True)


def _to_tensor(given: Any) -> Tensor:
    array = np.array(given)  # a copy: negative strides and read-only arrays are fine
    if array.size == 0 and not isinstance(given, np.ndarray):
        return torch.empty(0, dtype=torch.int64)
    if array.dtype.kind not in "biu":
        raise RowError(f"rows: expected integers, got {_short(given)}. Pass the ids as ints.")
    return torch.from_numpy(array.astype(np.int64) if array.dtype.kind in "iu" else array)


def _check_range(ids: Tensor, count: int) -> None:
    outside = ids[(ids < 0) | (ids >= count)]
    if len(outside):
        hint = " If your ids start at 1, pass `rows - 1`." if outside.min() >= count else ""
        raise RowError(
            f"rows: {len(outside)} of {len(ids)} ids are outside the table: {_listing(outside)}. "
            f"The table has {count} rows, so ids run from 0 to {count - 1}.{hint}"
        )


def _check_distinct(ids: Tensor) -> None:
    values, counts = torch.unique(ids, return_counts=True)
    repeated = values[counts > 1]
    if len(repeated):
        raise RowError(f"rows: ids listed more than once: {_listing(repeated)}. List each row once.")


def _listing(ids: Tensor) -> str:
    return listed(map(str, ids.tolist()), most=8)


def _short(value: object) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
