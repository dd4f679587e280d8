"""Which elements of one tensor learn, and how its frozen and learned parts fit together.

Letters used for shapes in this file:
    V  rows of the tensor         *  the rest of its shape
    R  rows that learn            n  single entries that learn

A tensor of shape (V, *) is stored as two parts:
    frozen   (V, *)             the tensor as it was; at the learned positions, a copy of what is learned
    learned  (R, *) or (n,)     the elements that learn
LearnedIndices says which positions of `frozen` the elements of `learned` belong to. Memory keeps the copies there
current. Both are shared by every module that holds the tensor.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

_LOCK = threading.RLock()  # several threads may run one model


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
        return full[self.index]

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

    @torch.no_grad()
    def scatter_(self, full: Tensor, values: Tensor) -> None:
        """Write `values`, (R, *) or (n,), into `full` (V, *) at the learned indices."""
        values = values if values.dtype == full.dtype else values.to(full.dtype)
        if self.row_to_slot is not None:
            full.index_copy_(0, self.index[0], values)
        else:
            full.index_put_(self.index, values)


class Memory:
    """The memory of a frozen part, and what is known of the learned values in it. All owners of a tensor share one.

    A tensor may be written through either part: the learned one by an optimizer, the frozen one by loading, by
    `weight[1] = 0` or through any view. `sync` makes both the same again. What was written since it ran last is seen by
    autograd's version counters; if both parts were, the learned part wins.

    Attributes:
        indices: What learns.
        looked_up: Whether every owner only looks rows up. Then the memory is written when something else asks for it,
            not after every step, so that a step costs what it uses.
    """

    def __init__(self, indices: LearnedIndices, looked_up: bool) -> None:
        self.indices = indices
        self.looked_up = looked_up
        self._seen: tuple[Any, Any] | None = None  # the stamps of both parts when they were last the same
        self._writable: int | None = None  # address of the frozen part when it was last known to be writable
        self.shown: weakref.ref[Any] | None = None  # the PartialTensor that shows it

    def __deepcopy__(self, memo: dict[int, object]) -> Memory:
        return Memory(self.indices, self.looked_up)

    def __reduce__(self) -> tuple[Any, ...]:
        return Memory, (self.indices, self.looked_up)

    def note(self, frozen: Tensor, learned: Tensor) -> None:
        """Note that both parts hold the same values now."""
        self._seen = _stamp(frozen), _stamp(learned)
        if self._writable is None and may_be_written(frozen):
            self._writable = frozen.data_ptr()

    def knows(self, learned: Tensor) -> bool:
        """Return whether this is the learned part that was seen last."""
        return self._seen is not None and self._seen[1][0] == id(learned)

    def is_synced(self, frozen: Tensor) -> bool:
        """Return whether nothing but `sync` has written to the frozen part since it ran last."""
        return self._seen is not None and self._seen[0] == _stamp(frozen)

    def restorer(self, frozen: Tensor, learned: Tensor) -> Callable[[], None]:
        """Return a function that takes back what `sync` does from now on, once the learned part is as it is now."""
        self.sync(frozen, learned)
        seen, shown, version = self._seen, self.shown, frozen._version

        def restore() -> None:
            if frozen._version != version:
                self.indices.scatter_(frozen, learned.detach())
                torch._C._autograd._unsafe_set_version_counter((frozen,), (version,))
            self._seen, self.shown = seen, shown

        return restore

    def seems_changed(self, frozen: Tensor, learned: Tensor) -> bool:
        """Return whether a part was written since they were last the same; of a looked-up table, the frozen part."""
        if self._seen is None or self._seen[0] != _stamp(frozen):
            return True
        return not self.looked_up and self._seen[1] != _stamp(learned)

    def sync(self, frozen: Tensor, learned: Tensor) -> None:
        """Make both parts hold the same values at the learned indices."""
        if frozen.is_meta or learned.is_meta or self.indices.read_only:
            return
        with _LOCK, torch.no_grad(), torch._C.DisableTorchFunction():
            seen, before, after = self._seen, _stamp(frozen), _stamp(learned)
            if seen is not None and seen[0] != before and seen[1] == after:
                self.indices.update(learned, frozen.detach())
            else:
                # Written in any case: a fused optimizer, `.data` and other processes write without being counted. Where
                # nothing seems to have changed that is not counted either, or graphs that saved the tensor would raise.
                changed = seen is None or seen[1] != after
                if self._writable != before[1]:
                    self._writable = writable(frozen).data_ptr()
                version = frozen._version
                self.indices.scatter_(frozen, learned.detach())
                if not changed:
                    torch._C._autograd._unsafe_set_version_counter((frozen,), (version,))
            self.note(frozen, learned)


def _stamp(tensor: Tensor) -> tuple[int, int, int]:
    return id(tensor), tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _with_data(device: torch.device) -> torch.device:
    """Return `device`, or the CPU for the meta device: indices need data even if the tensor has none."""
    return torch.device("cpu") if device.type == "meta" else device


def with_changes(old: Tensor, new: Tensor) -> Tensor:
    """Return `new` in the dtype of `old`, keeping elements of `old` that round to it; in one dtype, just `new`."""
    return new if new.dtype == old.dtype else torch.where(new != old.to(new.dtype), new.to(old.dtype), old)


def writable(tensor: Tensor) -> Tensor:
    """Return `tensor`, in memory that can be written to.

    Its data may be copied, once, into memory of torch's own. Tied tensors are one object, so they stay tied.
    """
    if not may_be_written(tensor):
        tensor.data = tensor.data.clone()
    return tensor


def may_be_written(tensor: Tensor) -> bool:
    """Return whether it is certain that writing to `tensor` does not crash.

    Memory that torch did not allocate (numpy's, a mapped file's) may be read-only.
    """
    return tensor.device.type != "cpu" or tensor.untyped_storage().resizable() or tensor.is_shared()
