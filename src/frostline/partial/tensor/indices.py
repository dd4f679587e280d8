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
        flat: int64: for rows their ids, (R,); for entries, where each lies in the flattened tensor, (n,).
        shape: The sizes of the dimensions that are indexed: (V,) for rows, all of the tensor's for entries.
        row_to_slot: For rows, the map from a row's id to its position in `learned`: int32, shape (V,), -1 where the
            row is frozen. The only memory of size V that a partial tensor adds; it is made once. None for entries.
        learn_padding: Whether the row at `padding_idx` learns because the caller asked for it.
        padding: Ids of padding rows that are known to be frozen.
        read_only: Whether the frozen part is a memory-mapped file.
    """

    flat: Tensor
    shape: tuple[int, ...]
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
        return cls(ids, (rows,), row_to_slot, learn_padding, padding)

    @classmethod
    def from_entries(cls, mask: Tensor, device: torch.device) -> LearnedIndices:
        """Return the indices for a tensor of which the entries learn where `mask` is True."""
        return cls(mask.to(_with_data(device)).reshape(-1).nonzero().squeeze(1), tuple(mask.shape), None)

    @property
    def index(self) -> tuple[Tensor, ...]:
        """One int64 tensor for each indexed dimension: `tensor[index]` is what learns. For entries, made anew."""
        return torch.unravel_index(self.flat, self.shape) if len(self.shape) > 1 else (self.flat,)

    @property
    def kind(self) -> str:
        """What learns: "rows" or "entries"."""
        return "entries" if self.row_to_slot is None else "rows"

    def __len__(self) -> int:
        return len(self.flat)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_places", "_block")}

    def places_in(self, full: Tensor) -> Places | None:
        """Return where the learned elements lie in the memory of `full` (V, *); None if it has gaps."""
        if not full.is_contiguous():
            return None
        if "_places" not in vars(self):
            with torch.inference_mode(False):  # made when first used, for backward passes as well
                object.__setattr__(self, "_places", Places(self.flat, full.shape, len(self.shape)))
        return vars(self)["_places"]  # type: ignore[no-any-return]

    def _are_flat_in(self, full: Tensor) -> bool:
        """Return whether these are entries of a tensor without gaps in its memory, and `flat` is where they lie."""
        return len(self.shape) == full.ndim and full.is_contiguous()

    def __deepcopy__(self, memo: dict[int, object]) -> LearnedIndices:
        return self  # immutable, so a copied model shares it

    def to(self, device: torch.device) -> LearnedIndices:
        """Return the same indices on `device`; `self` if they are there already."""
        device = _with_data(device)
        if self.flat.device == device:
            return self
        row_to_slot = None if self.row_to_slot is None else self.row_to_slot.to(device)
        return replace(self, flat=self.flat.to(device), row_to_slot=row_to_slot)

    def same_entries(self, other: LearnedIndices) -> bool:
        """Return whether both select the same elements, in the same order."""
        return self.shape == other.shape and torch.equal(self.flat, other.flat)

    def gather(self, full: Tensor) -> Tensor:
        """Return a copy of the values of `full` (V, *) at the learned indices, shape (R, *) or (n,)."""
        if self._are_flat_in(full):
            return full.view(-1).index_select(0, self.flat)
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
        ids = self.flat
        following = torch.arange(len(ids), device=ids.device) + ids[:1]
        return (int(ids[0]), len(ids)) if torch.equal(ids, following) else None

    def merged(self, frozen: Tensor, learned: Tensor) -> Tensor:
        """Return a copy of `frozen` with `learned` at its indices; only `learned` gets a gradient through it."""
        frozen, learned = frozen.detach(), learned.to(frozen.dtype)
        if self._are_flat_in(frozen):
            return frozen.view(-1).index_put((self.flat,), learned).view(frozen.shape)
        return frozen.index_put(self.index, learned)

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
            copy_rows_(full, self.flat, values)
        elif self._are_flat_in(full):
            copy_rows_(full.view(-1), self.flat, values)
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
