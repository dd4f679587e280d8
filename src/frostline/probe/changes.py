"""How far the entries of a tensor moved, row by row.

Letters used for shapes in this file:
    V  rows of a tensor, its dimension 0 (a number without dimensions is one row)
    *  the rest of its shape      K  rows in which an entry moved

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
class Moved:
    """What one tensor did in a step.

    Attributes:
        moved: Entries of which a bit changed.
        of: Entries of the tensor; of a tensor that FSDP2 has sharded, those of this process.
        largest: The largest distance that an entry moved; NaN if one became NaN, 0.0 if none moved.
        median: The median distance, of the entries that moved.
        of_rows: Rows of the tensor, V; of a sharded one, those of this process.
        rows: Ids of the rows in which an entry moved, ascending, int64, shape (K,).
        row_moved: Entries that moved in each of them, int64, shape (K,).
        row_largest: The largest distance in each of them, float64, shape (K,).
        row_median: The median distance in each of them, of the entries that moved, float64, shape (K,).
        tied: Other names of the same tensor.
    """

    moved: int
    of: int
    largest: float
    median: float
    of_rows: int
    rows: Tensor
    row_moved: Tensor
    row_largest: Tensor
    row_median: Tensor
    tied: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values: `moved`, `of`, `largest`, `median`, `rows` (how many), `of_rows` and `tied`."""
        return {
            "moved": self.moved,
            "of": self.of,
            "largest": self.largest,
            "median": self.median,
            "rows": len(self.rows),
            "of_rows": self.of_rows,
            "tied": list(self.tied),
        }


class Tally:
    """What moved in one tensor (V, *), gathered some rows at a time."""

    def __init__(self, tensor: Tensor) -> None:
        here = local(tensor)
        self._of, self._of_rows = here.numel(), len(here) if here.dim() else 1
        self._rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # ids, moved, largest, median: each (K,)
        self._distances: list[Tensor] = []

    def add(
        self,
        before: Tensor,
        after: Tensor,
        ids: Callable[[Tensor], Tensor],
        ignore: Tensor | None = None,
    ) -> None:
        """Compare (R, *) with (R, *).

        Args:
            before: Values before.
            after: Values after.
            ids: Gives the ids in the whole tensor of places 0 to R - 1, int64.
            ignore: Places that stand for nothing, bool, shape (R,).
        """
        before, after = _rows(before), _rows(after)
        step = max(1, _CHUNK // max(1, before.shape[1]))
        for start in range(0, len(before), step):
            here = slice(start, start + step)
            differs = changed(before[here], after[here])
            if ignore is not None:
                differs &= ~ignore[here, None]
            places = differs.any(1).nonzero().squeeze(1)
            if not len(places):
                continue
            differs = differs[places]
            distance = _distance(before[here][places], after[here][places])
            largest = torch.where(differs, distance, 0.0).amax(1)
            median = torch.where(differs, distance, math.nan).nanmedian(1).values
            self._rows.append((ids(places + start).cpu(), differs.sum(1).cpu(), largest.cpu(), median.cpu()))
            self._distances.append(distance[differs].float().cpu())

    def moved(self, tied: tuple[str, ...]) -> Moved:
        """All of it together."""
        empty = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
        rows, counts, largest, median = _by_row(
            *(
                torch.cat([empty[index > 1], *column])
                for index, column in enumerate(zip(*self._rows, strict=True) if self._rows else [()] * 4)
            )
        )
        total = int(counts.sum())
        return Moved(
            moved=total,
            of=self._of,
            largest=float(largest.max()) if total else 0.0,
            median=float(torch.cat(self._distances).nanmedian()) if total else 0.0,
            of_rows=self._of_rows,
            rows=rows,
            row_moved=counts,
            row_largest=largest,
            row_median=median,
            tied=tied,
        )


def first_row(tensor: Any) -> int:
    """The id, in the whole tensor, of the first row that this process holds: 0 unless it is a DTensor."""
    if not hasattr(tensor, "to_local") or not tensor.dim():
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset as place_of

    _, offset = place_of(tensor.shape, tensor.device_mesh, tensor.placements)
    return int(offset[0])


def _by_row(rows: Tensor, counts: Tensor, largest: Tensor, median: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows in order, each once. A row that comes several times comes one entry at a time."""
    order = rows.argsort(stable=True)
    rows, counts, largest, median = rows[order], counts[order], largest[order], median[order]
    ids, sizes = rows.unique_consecutive(return_counts=True)
    if len(ids) == len(rows):
        return rows, counts, largest, median
    entries = largest.split(sizes.tolist())
    return (
        ids,
        torch.stack([one.sum() for one in counts.split(sizes.tolist())]),
        torch.stack([one.max() for one in entries]),
        torch.stack([one.nanmedian() for one in entries]),
    )


def _rows(tensor: Tensor) -> Tensor:
    """(V, *) as (V, D)."""
    return tensor.reshape(len(tensor), math.prod(tensor.shape[1:])) if tensor.dim() else tensor.reshape(1, 1)


def _distance(before: Tensor, after: Tensor) -> Tensor:
    wide = torch.complex128 if before.is_complex() else torch.float64
    return (after.to(wide) - before.to(wide)).abs()
