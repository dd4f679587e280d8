"""Which elements of one tensor learn, and how its frozen and learned parts fit together.

Letters used for shapes in this file:
    V  rows of the tensor         *  the rest of its shape
    R  rows that learn            n  single entries that learn

A tensor of shape (V, *) is stored as two parts:
    frozen   (V, *)             the tensor as it was; at the learned positions, a copy of what is learned
    learned  (R, *) or (n,)     the elements that learn
LearnedIndices says which positions of `frozen` the elements of `learned` belong to. It is immutable, and shared by
every module that holds the tensor. What keeps the copy current is memory.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from frostline.partial.tensor.places import Places


@dataclass(frozen=True, eq=False)
class LearnedIndices:
    """The indices of the rows or entries of one tensor that learn.

    Attributes:
        index: One int64 tensor for each indexed dimension: `(ids,)` of shape (R,) for rows, or one of shape (n,) for
            every dimension for entries. `tensor[index]` is what learns.
        row_to_slot: For rows, the map from a row's id to its position in `learned`: int32, shape (V,), -1 where the
            row is frozen. The only memory of size V that a partial tensor adds; it is made once. None for entries.
        learn_padding: Whether the row at `padding_idx` learns because the caller asked for it.
        padding: Ids of padding rows that are known to be frozen.
        read_only: Whether the frozen part is a memory-mapped file.
    """

    index: tuple[Tensor, ...]
    row_to_slot: Tensor | None
    learn_padding: bool = False
    padding: tuple[int, ...] = ()
    read_only: bool = False

    @classmethod
    def from_rows(
        cls,
        ids: Tensor,
        rows: int,
        device: torch.device,
        learn_padding: bool = False,
        padding: tuple[int, ...] = (),
    ) -> LearnedIndices:
        """Return the indices for a tensor of `rows` rows, of which the rows `ids` (R,) learn."""
        device = _with_data(device)
        ids = ids.to(device)
        row_to_slot = torch.full((rows,), -1, dtype=torch.int32, device=device)
        row_to_slot[ids] = torch.arange(len(ids), dtype=torch.int32, device=device)
        return cls((ids,), row_to_slot, learn_padding, padding)

    @classmethod
    def from_entries(cls, mask: Tensor, device: torch.device) -> LearnedIndices:
        """Return the indices for a tensor of which the entries learn where `mask` is True."""
        return cls(mask.to(_with_data(device)).nonzero(as_tuple=True), None)

    @property
    def kind(self) -> str:
        """What learns: "rows" or "entries"."""
        return "entries" if self.row_to_slot is None else "rows"

    def __len__(self) -> int:
        return len(self.index[0])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_places", "_block")}

    def places_in(self, full: Tensor) -> Places | None:
        """Return where the learned elements lie in the memory of `full` (V, *); None if it has gaps."""
        if not full.is_contiguous():
            return None
        if "_places" not in vars(self):
            with torch.inference_mode(False):  # made when first used, for backward passes as well
                object.__setattr__(self, "_places", Places(self.index, full.shape))
        return vars(self)["_places"]  # type: ignore[no-any-return]

    def _flat_in(self, full: Tensor) -> Tensor | None:
        """Return the indices of entries in the memory of `full`, (n,), many times as fast; None if it has gaps."""
        if len(self.index) != full.ndim or full.ndim < 2 or (places := self.places_in(full)) is None:
            return None
        return places.starts

    def __deepcopy__(self, memo: dict[int, object]) -> LearnedIndices:
        return self  # immutable, so a copied model shares it

    def to(self, device: torch.device) -> LearnedIndices:
        """Return the same indices on `device`; `self` if they are there already."""
        device = _with_data(device)
        if self.index[0].device == device:
            return self
        row_to_slot = None if self.row_to_slot is None else self.row_to_slot.to(device)
        return replace(self, index=tuple(index.to(device) for index in self.index), row_to_slot=row_to_slot)

    def same_entries(self, other: LearnedIndices) -> bool:
        """Return whether both select the same elements, in the same order."""
        mine, theirs = self.index, other.index
        return len(mine) == len(theirs) and all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))

    def gather(self, full: Tensor) -> Tensor:
        """Return a copy of the values of `full` (V, *) at the learned indices, shape (R, *) or (n,)."""
        if (flat := self._flat_in(full)) is not None:
            return full.view(-1).index_select(0, flat)
        return full[self.index]

    def holds(self, full: Tensor, values: Tensor) -> bool:
        """Return whether `full` (V, *) has the bits of `values`, (R, *) or (n,), at the learned indices."""
        now, values = self.gather(full.detach()), values.detach().to(full.dtype)
        return torch.equal(now.contiguous().view(torch.uint8), values.contiguous().view(torch.uint8))

    @cached_property
    def _block(self) -> tuple[int, int] | None:
        """The first row and how many, if what learns are rows that follow each other: one expert, or new tokens."""
        if self.row_to_slot is None:
            return None
        (ids,) = self.index
        following = torch.arange(len(ids), device=ids.device) + ids[:1]
        return (int(ids[0]), len(ids)) if torch.equal(ids, following) else None

    def merged(self, frozen: Tensor, learned: Tensor) -> Tensor:
        """Return a copy of `frozen` with `learned` at its indices; only `learned` gets a gradient through it."""
        return frozen.detach().index_put(self.index, learned.to(frozen.dtype))

    @torch.no_grad()
    def update(self, learned: Tensor, full: Tensor) -> None:
        """Copy into `learned` the values of `full` (V, *) that changed.

        A value of `learned` that rounds to the one in `full` is kept: it may hold digits that the dtype of `full`
        cannot represent.
        """
        learned.copy_(with_changes(learned, self.gather(full)))

    def scatter_(self, full: Tensor, values: Tensor) -> None:
        """Write `values`, (R, *) or (n,), into `full` (V, *) at the learned indices."""
        full = full.detach()  # quicker than `no_grad`, and a write to it is counted in the version of `full`
        values = values.detach() if values.dtype == full.dtype else values.detach().to(full.dtype)
        if block := self._block:
            full.narrow(0, *block).copy_(values)
        elif self.row_to_slot is not None:
            copy_rows_(full, self.index[0], values)
        elif (flat := self._flat_in(full)) is not None:
            copy_rows_(full.view(-1), flat, values)
        else:
            full, values = _writable_by_index(full, values)
            full.index_put_(self.index, values)


def copy_rows_(full: Tensor, ids: Tensor, values: Tensor) -> None:
    """Write `values` (R, *) to the rows `ids` (R,) of `full` (V, *)."""
    full, values = _writable_by_index(full, values)
    full.index_copy_(0, ids, values)


def _writable_by_index(full: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as they are, or as bytes where torch has no indexed writes: float8."""
    return (full.view(torch.uint8), values.view(torch.uint8)) if full.dtype.itemsize == 1 else (full, values)


def _with_data(device: torch.device) -> torch.device:
    """Return `device`, or the CPU for the meta device: indices need data even if the tensor has none."""
    return torch.device("cpu") if device.type == "meta" else device


def with_changes(old: Tensor, new: Tensor) -> Tensor:
    """Return `new` in the dtype of `old`, keeping elements of `old` that round to it; in one dtype, just `new`."""
    return new if new.dtype == old.dtype else torch.where(new != old.to(new.dtype), new.to(old.dtype), old)
