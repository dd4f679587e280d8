"""How far the entries of a tensor moved, row by row.

Letters used for shapes in this file:
    V  rows of a tensor, its dimension 0 (a number without dimensions is one row)
    *  the rest of its shape      K  rows in which an entry moved

A table is compared some rows at a time, so that no temporary is of its size unless that much moved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frostline.probe.step import changed

_CHUNK = 1 << 20  # entries compared at a time


@dataclass(frozen=True, eq=False)
class Moved:
    """What one tensor did in a step.

    Attributes:
        moved: Entries of which a bit changed.
        of: Entries of the tensor.
        largest: The largest distance that an entry moved; NaN if one became NaN, 0.0 if none moved.
        median: The median distance, of the entries that moved.
        of_rows: Rows of the tensor, V.
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
    """Rows of one tensor (V, *) that moved, gathered some at a time."""

    def __init__(self, tensor: Tensor) -> None:
        self._of, self._of_rows = tensor.numel(), len(tensor) if tensor.dim() else 1
        self._rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # ids, moved, largest, median: each (K,)
        self._distances: list[Tensor] = []

    def add(self, before: Tensor, after: Tensor, ids: Tensor | None = None, ignore: Tensor | None = None) -> None:
        """Compare (R, *) with (R, *).

        Args:
            before: Values before.
            after: Values after.
            ids: Their ids in the whole tensor, int64, shape (R,); None: 0 to R - 1.
            ignore: Rows that stand for nothing, bool, shape (R,).
        """
        before, after = _rows(_local(before.detach())), _rows(_local(after.detach()))
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
            unmoved = torch.where(differs, distance, math.nan)
            self._rows.append(
                (
                    (places + start if ids is None else ids[places + start]).cpu(),
                    differs.sum(1).cpu(),
                    torch.where(differs, distance, 0.0).amax(1).cpu(),
                    unmoved.nanmedian(1).values.cpu(),
                )
            )
            self._distances.append(distance[differs].float().cpu())

    def moved(self, tied: tuple[str, ...]) -> Moved:
        """All of it together."""
        empty = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
        rows, counts, largest, median = (
            torch.cat([empty[index > 1], *column])
            for index, column in enumerate(zip(*self._rows, strict=True) if self._rows else [()] * 4)
        )
        order = rows.argsort()
        total = int(counts.sum())
        return Moved(
            moved=total,
            of=self._of,
            largest=float(largest.max()) if total else 0.0,
            median=float(torch.cat(self._distances).nanmedian()) if total else 0.0,
            of_rows=self._of_rows,
            rows=rows[order],
            row_moved=counts[order],
            row_largest=largest[order],
            row_median=median[order],
            tied=tied,
        )


def _rows(tensor: Tensor) -> Tensor:
    """(V, *) as (V, D)."""
    return tensor.reshape(len(tensor), math.prod(tensor.shape[1:])) if tensor.dim() else tensor.reshape(1, 1)


def _local(tensor: Any) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[no-any-return]


def _distance(before: Tensor, after: Tensor) -> Tensor:
    wide = torch.complex128 if before.is_complex() else torch.float64
    return (after.to(wide) - before.to(wide)).abs()
