"""How many entries of a tensor changed in a step, in which rows, and by how much.

Letters used for shapes in this file:
    V  rows of a tensor, its dimension 0 (a tensor without dimensions is one row)
    R  rows compared in one call  K  rows in which an entry moved
    *  the rest of the shape      D  entries of a row

A table is compared some rows at a time, so that no temporary is of its size unless that much moved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frostline.probe.restore.bits import changed, local

_CHUNK = 1 << 20  # entries compared at a time


@dataclass(frozen=True, eq=False)
class EntryChanges:
    """The changes of one tensor in a step.

    Attributes:
        entries_moved: How many entries have a changed bit.
        entries: How many entries the tensor has; if FSDP2 has sharded it, those of this process.
        largest: The largest distance that an entry moved; NaN if one became NaN, 0.0 if none moved.
        median: The median distance of the entries that moved.
        num_rows: How many rows the tensor has, V; if sharded, those of this process.
        rows: Ids of the rows in which an entry moved, ascending, int64, shape (K,).
        row_moved: How many entries moved in each of these rows, int64, shape (K,).
        row_largest: The largest distance in each of these rows, float64, shape (K,).
        row_median: The median distance of the entries that moved in each of these rows, float64, shape (K,).
        tied: Other names of the same tensor.
    """

    entries_moved: int
    entries: int
    largest: float
    median: float
    num_rows: int
    rows: Tensor
    row_moved: Tensor
    row_largest: Tensor
    row_median: Tensor
    tied: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: the attributes but those of each row, and `rows_moved`, the length of `rows`."""
        return {
            "entries_moved": self.entries_moved,
            "entries": self.entries,
            "largest": self.largest,
            "median": self.median,
            "rows_moved": len(self.rows),
            "num_rows": self.num_rows,
            "tied": list(self.tied),
        }


class Tally:
    """The changes of one tensor (V, *), counted some rows at a time.

    A partial tensor is counted in two calls of `add`, one for each of its parts.
    """

    def __init__(self, tensor: Tensor, whole: bool = False) -> None:
        shard = tensor if whole else local(tensor)  # what the process holds, if it does not hold all that learns
        self._entries, self._num_rows = shard.numel(), len(shard) if shard.dim() else 1
        self._rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # ids, moved, largest, median: each (K,)
        self._distances: list[Tensor] = []

    def add(
        self,
        before: Tensor,
        after: Tensor,
        ids: Callable[[Tensor], Tensor],
        ignore: Tensor | None = None,
    ) -> None:
        """Count the entries that differ between two tensors (R, *).

        Args:
            before: Values before the step.
            after: Values after it.
            ids: Maps indices from 0 to R - 1 to the ids of these rows in the whole tensor, int64.
            ignore: Rows that are not counted, bool, shape (R,).
        """
        before, after = _as_rows(before), _as_rows(after)
        step = max(1, _CHUNK // max(1, before.shape[1]))
        for start in range(0, len(before), step):
            chunk = slice(start, start + step)
            differs = changed(before[chunk], after[chunk])  # (rows of the chunk, D)
            if ignore is not None:
                differs &= ~ignore[chunk, None]
            indices = differs.any(1).nonzero().squeeze(1)  # (K,)
            if not len(indices):
                continue
            differs = differs[indices]  # (K, D): distances, in float64, are computed for these rows alone
            distance = _distance(before[chunk][indices], after[chunk][indices])
            largest = torch.where(differs, distance, 0.0).amax(1)
            median = torch.where(differs, distance, math.nan).nanmedian(1).values
            self._rows.append((ids(indices + start).cpu(), differs.sum(1).cpu(), largest.cpu(), median.cpu()))
            self._distances.append(distance[differs].float().cpu())

    def result(self, tied: tuple[str, ...]) -> EntryChanges:
        """Return what all calls of `add` have counted."""
        empty = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
        rows, counts, largest, median = _merge_repeated(
            *(
                torch.cat([empty[index > 1], *column])
                for index, column in enumerate(zip(*self._rows, strict=True) if self._rows else [()] * 4)
            )
        )
        total = int(counts.sum())
        return EntryChanges(
            entries_moved=total,
            entries=self._entries,
            largest=float(largest.max()) if total else 0.0,
            median=float(torch.cat(self._distances).nanmedian()) if total else 0.0,
            num_rows=self._num_rows,
            rows=rows,
            row_moved=counts,
            row_largest=largest,
            row_median=median,
            tied=tied,
        )


def first_row(tensor: Any) -> int:
    """Return the id, in the whole tensor, of the first row that this process holds: 0 unless it is a DTensor."""
    if not hasattr(tensor, "to_local") or not tensor.dim():
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return int(offset[0])


def _merge_repeated(
    rows: Tensor, counts: Tensor, largest: Tensor, median: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the columns sorted by row, each row once.

    A row is repeated only where single entries were compared, so each repetition is one entry: the largest distance of
    the row is the maximum of them, and the median of the row is exactly the median of them.
    """
    order = rows.argsort(stable=True)
    rows, counts, largest, median = rows[order], counts[order], largest[order], median[order]
    ids, sizes = rows.unique_consecutive(return_counts=True)
    if len(ids) == len(rows):
        return rows, counts, largest, median
    distances = largest.split(sizes.tolist())  # of the entries of each row
    return (
        ids,
        torch.stack([row.sum() for row in counts.split(sizes.tolist())]),
        torch.stack([row.max() for row in distances]),
        torch.stack([row.nanmedian() for row in distances]),
    )


def _as_rows(tensor: Tensor) -> Tensor:
    """Return (V, *) as (V, D)."""
    return tensor.reshape(len(tensor), math.prod(tensor.shape[1:])) if tensor.dim() else tensor.reshape(1, 1)


def _distance(before: Tensor, after: Tensor) -> Tensor:
    wide = torch.complex128 if before.is_complex() else torch.float64
    return (after.to(wide) - before.to(wide)).abs()
