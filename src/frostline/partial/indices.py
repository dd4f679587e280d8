"""Which entries of one tensor learn, and how its two parts fit together.

Letters used for shapes in this file:
    V  rows of the tensor         *  the rest of its shape
    R  rows that learn            n  single entries that learn

A tensor of shape (V, *) is kept as two parts that are never joined while it trains:
    frozen   (V, *)             the tensor as it was
    learned  (R, *) or (n,)     the entries that learn
What stands in `frozen` at the learned places stands for nothing: no result depends on it. A Layout says where `learned`
belongs in `frozen`. It is immutable, and shared by every module that holds the tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """The places of a tensor that learn.

    Attributes:
        places: One index tensor a dimension indexed, int64: `(ids,)` of shape (R,) for rows, or one of shape (n,) for
            every dimension for entries. `tensor[places]` is what learns.
        slots: For rows, the map from a row's id to its place in `learned`: int32, shape (V,), -1 where the row is
            frozen. The one thing of size V that a partial tensor adds; it is made once. None for entries.
        read_only: Whether the frozen part is a mapped file.
        learn_padding: Whether the row at `padding_idx` learns because the caller asked for it.
        padding: Ids of padding rows that are known to be frozen.
    """

    places: tuple[Tensor, ...]
    slots: Tensor | None
    learn_padding: bool = False
    padding: tuple[int, ...] = ()
    read_only: bool = False

    @classmethod
    def of_rows(
        cls,
        ids: Tensor,
        rows: int,
        device: torch.device,
        learn_padding: bool = False,
        padding: tuple[int, ...] = (),
    ) -> Layout:
        """The layout in which the rows `ids` (R,) of a tensor of `rows` rows learn."""
        device = _real(device)
        ids = ids.to(device)
        slots = torch.full((rows,), -1, dtype=torch.int32, device=device)
        slots[ids] = torch.arange(len(ids), dtype=torch.int32, device=device)
        return cls((ids,), slots, learn_padding, padding)

    @classmethod
    def of_entries(cls, mask: Tensor, device: torch.device) -> Layout:
        """The layout in which the entries where `mask` is True learn."""
        return cls(mask.to(_real(device)).nonzero(as_tuple=True), None)

    @property
    def kind(self) -> str:
        """The word for what learns: "rows" or "entries"."""
        return "entries" if self.slots is None else "rows"

    def __len__(self) -> int:
        return len(self.places[0])

    def __deepcopy__(self, memo: dict[int, object]) -> Layout:
        return self  # immutable, so a copied model shares it

    def to(self, device: torch.device) -> Layout:
        """The same layout on `device`; itself when it is there already."""
        device = _real(device)
        if self.places[0].device == device:
            return self
        slots = None if self.slots is None else self.slots.to(device)
        return replace(self, places=tuple(place.to(device) for place in self.places), slots=slots)

    def same_places(self, other: Layout) -> bool:
        """Whether both choose the same entries, in the same order."""
        mine, theirs = self.places, other.places
        return len(mine) == len(theirs) and all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))

    def take(self, full: Tensor) -> Tensor:
        """What stands in `full` (V, *) at the learned places: a copy, shape (R, *) or (n,)."""
        return full[self.places]

    def join(self, frozen: Tensor, learned: Tensor) -> Tensor:
        """The whole tensor, shape and dtype of `frozen`: a copy of it, through which `learned` gets its gradient."""
        return frozen.index_put(self.places, learned.to(frozen.dtype))

    @torch.no_grad()
    def update(self, learned: Tensor, full: Tensor) -> None:
        """Take into `learned` what is new in `full` (V, *); the rest keeps digits that the dtype of `full` has not."""
        learned.copy_(with_news(learned, self.take(full)))

    @torch.no_grad()
    def put(self, full: Tensor, values: Tensor) -> None:
        """Write `values`, (R, *) or (n,), into `full` (V, *) at the learned places."""
        full.index_put_(self.places, values.to(full.dtype))


def _real(device: torch.device) -> torch.device:
    """Where a layout is kept for a tensor on `device`: a tensor may be without data (meta), its layout may not."""
    return torch.device("cpu") if device.type == "meta" else device


def with_news(old: Tensor, new: Tensor) -> Tensor:
    """`new` in the dtype of `old`; an entry that `old` rounds to keeps its digits. In one dtype, every bit of `new`."""
    return new if new.dtype == old.dtype else torch.where(new != old.to(new.dtype), new.to(old.dtype), old)


def writable(tensor: Tensor) -> Tensor:
    """The data of `tensor` where it can be written to.

    Memory that is not torch's own (numpy's, a mapped file's) may be read-only, where a write would crash; `tensor` is
    then moved, once, into memory of torch's. Tensors tied to it are the same object and move with it.
    """
    if tensor.device.type == "cpu" and not tensor.is_shared() and not tensor.untyped_storage().resizable():
        tensor.data = tensor.data.clone()
    return tensor.data
