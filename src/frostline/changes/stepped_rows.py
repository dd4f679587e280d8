"""The rows that a row optimizer has stepped since the last file, with their bits before: no copy of the table is kept.

Letters used for shapes in this file:
    V  rows of the table          w  entries of a row
    r  rows that were stepped     k  entries that differ

A row optimizer says which rows it is about to change, so their bits are kept then, once. That nothing else has changed
the table is not believed but shown: its hash must be the one that these rows lead to.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from frostline.changes.one_pass import Differing, bits_of
from frostline.changes.state import State, unwrapped
from frostline.optim.row_optimizer import RowOptimizer
from frostline.partial.model_tensors import ModelTensor, find_tensors
from frostline.partial.sharded import is_sharded


class SteppedRows:
    """One table that a row optimizer steps: its rows that were stepped since `forget`, and their bits before."""

    def __init__(self, target: ModelTensor) -> None:
        self._table = target.tensor
        self._flat = None if target.indices is None else target.indices.flat  # row of what learns -> row of the table
        entries = target.indices is not None and target.indices.kind == "entries"
        self._width = 1 if entries else math.prod(self._table.shape[1:])
        self._kept = torch.zeros(len(self._rows_now()), dtype=torch.bool, device=self._table.device)
        self.forget()

    def _rows_now(self) -> Tensor:
        return bits_of(self._table.detach()).view(-1, self._width)  # (V, w)

    def forget(self) -> None:
        """Begin anew: the table is as it was saved."""
        now = self._rows_now()
        self._parts = [(self._kept.new_empty(0, dtype=torch.int64), now.new_empty(0, self._width))]  # (r,), (r, w)
        self._kept.zero_()

    def keep(self, rows: Tensor | None) -> None:
        """Keep the bits of rows that are about to be stepped, all that learn if None; those that are kept stay."""
        if len(self._rows_now()) != len(self._kept):
            return  # another shape: `save` will say so
        if rows is None:
            rows = torch.arange(len(self._kept) if self._flat is None else len(self._flat), device=self._kept.device)
        rows = rows if self._flat is None else self._flat[rows]
        rows = rows[~self._kept[rows]]
        self._kept[rows] = True
        self._parts.append((rows, self._rows_now().index_select(0, rows)))

    def _sorted(self) -> tuple[Tensor, Tensor]:
        """Return the rows that are kept, ascending, and their bits before."""
        rows, before = map(torch.cat, zip(*self._parts, strict=True))
        rows, order = rows.sort()
        before = before[order]
        self._parts = [(rows, before)]
        return rows, before

    def differing(self) -> list[Differing]:
        """Return the entries of these rows that differ now, in one part; an empty list if there are none."""
        rows, before = self._sorted()
        now = self._rows_now().index_select(0, rows)
        differs = now != before
        row, column = differs.nonzero(as_tuple=True)
        return [Differing(rows[row] * self._width + column, now[differs], before[differs])] if len(row) else []

    def put(self, index: Tensor, bits: Tensor) -> None:
        """Let the bits before be others (k,) at flat indices (k,), which lie in rows that are kept."""
        rows, before = self._sorted()
        before[torch.searchsorted(rows, index // self._width), index % self._width] = bits


def stepped_rows(model: nn.Module, state: State, optimizers: Sequence[RowOptimizer]) -> dict[str, SteppedRows]:
    """Return the tables of a state that row optimizers step, by name; from now on they keep what is stepped.

    A table is left out that is sharded, mapped from a file, or has gaps in its memory.
    """
    found: dict[str, SteppedRows] = {}
    for target in find_tensors(unwrapped(model)):
        name = next((name for name in target.names if name in state), None)
        if name is None or target.mapped or is_sharded(target.tensor) or not target.tensor.is_contiguous():
            continue
        steps = target.tensor if target.learned is None else target.learned
        for optimizer in optimizers:
            if target.tensor.dim() and any(
                steps is held for group in optimizer.param_groups for held in group["params"]
            ):
                found[name] = rows = SteppedRows(target)
                _keep_before(optimizer, steps, rows)
                break
    return found


def _keep_before(optimizer: RowOptimizer, steps: Tensor, rows: SteppedRows) -> None:
    """Let `optimizer` tell `rows` of what it is about to step, for as long as these exist."""
    reference = weakref.ref(rows)

    def hook(parameter: Tensor, ids: Tensor | None) -> None:
        if parameter is steps and (found := reference()) is not None:
            found.keep(ids)

    weakref.finalize(rows, optimizer.register_rows_pre_hook(hook).remove)
