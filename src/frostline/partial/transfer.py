"""The state of what learned of a tensor, entry by entry, as the state of what learns of it now.

Letters used for shapes in this file:
    V  rows of a tensor             *  the rest of its shape
    R  rows that learned            R' rows that learn now (n, n': single entries)

Each entry of the new part has a place in the old one, from which its state comes, or none: it joins, and gets what the
optimizer begins with.

No list of optimizers says which state belongs to entries. The optimizer itself does, in the state that it begins with
for a stand-in, some rows longer than the new part, so that none of its sizes is like another. State of that shape
belongs to entries; of that length and one number wide, to rows; a single number, to the part as a whole. Any other
state mixes entries (the factors of Adafactor) and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from frostline.errors import StaleOptimizerError
from frostline.partial.find import Found
from frostline.partial.fresh import fresh_state

ANEW = "Make a new optimizer from plan.parameters()."


@dataclass(frozen=True)
class Part:
    """What learns of one tensor: a Parameter, and where its entries belong; None: it is the whole tensor."""

    parameter: Tensor
    places: tuple[Tensor, ...] | None

    def by_rows(self, whole: Tensor) -> bool:
        """Whether its dimension 0 counts rows of the tensor `whole`."""
        return self.places is None or self.parameter.ndim == whole.ndim

    def same_entries(self, other: Part) -> bool:
        """Whether both are the same entries, in the same order and dtype."""
        mine, theirs = self.parameter, other.parameter
        if mine is theirs:
            return True
        if self.places is None or other.places is None or mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            return False
        pairs = zip(self.places, other.places, strict=True)
        return all(torch.equal(a, b.to(a.device)) for a, b in pairs)


def transferred(
    one: Found, old: Part, new: Part, state: dict[str, Any], optimizer: Optimizer, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The state of the old part as state of the new one; empty where no entry goes on."""
    if old.same_entries(new):
        return state
    source = _source(one.tensor, old, new)
    if not bool((source >= 0).any()):
        return {}
    longer = _longer(new.parameter)
    begins = fresh_state(optimizer, options, longer)
    who = f"optimizer: {type(optimizer).__name__}: {one.names[0]}"
    placing = _Placing(old, new, source, len(longer), by_rows=old.by_rows(one.tensor) and new.by_rows(one.tensor))
    return {key: placing.state(value, begins.get(key), f"{who}: its state {key!r}") for key, value in state.items()}


def _source(whole: Tensor, old: Part, new: Part) -> Tensor:
    """For each row of the new part (R',), or each of its entries, its place in the old part; -1 for one that joins."""
    device = new.parameter.device
    if old.by_rows(whole) and new.by_rows(whole):
        places = torch.arange(len(whole), device=device)
    else:
        places = torch.arange(whole.numel(), device=device).view(whole.shape)
    was, now = (places if p.places is None else places[tuple(i.to(device) for i in p.places)] for p in (old, new))
    slots = torch.full((places.numel(),), -1, device=device)
    slots[was.flatten()] = torch.arange(was.numel(), device=device)
    return slots[now]


def _longer(part: Tensor) -> Tensor:
    """The values of a part (R', *), of which the last row is repeated until no other size is the number of rows."""
    values = part.detach()
    length = len(values)
    while length in (0, 1, *values.shape[1:]):
        length += 1
    return torch.cat([values, values[-1:].expand(length - len(values), *values.shape[1:])])


@dataclass(frozen=True)
class _Placing:
    """The way of state from an old part to a new one.

    Attributes:
        source: From `_source`; for rows if `by_rows`, else for entries.
        length: Rows of the stand-in for the new part.
    """

    old: Part
    new: Part
    source: Tensor
    length: int
    by_rows: bool

    def state(self, value: Any, begins: Any, what: str) -> Any:
        """One value of the old part's state as the new part's; `begins`: what the stand-in got under this key."""
        if not isinstance(value, Tensor):
            if value is None or isinstance(value, bool | int | float | str):
                return value
        elif value.ndim == 0 or (value.numel() == 1 and isinstance(begins, Tensor) and begins.numel() == 1):
            return value
        elif isinstance(begins, Tensor) and (moved := self._tensor(value, begins)) is not None:
            return moved
        raise StaleOptimizerError(f"{what} belongs to no single rows or entries and cannot follow them. {ANEW}")

    def _tensor(self, value: Tensor, begins: Tensor) -> Tensor | None:
        was, now = self.old.parameter.shape, self.new.parameter.shape
        stand_in = (self.length, *now[1:])
        of_rows = begins.ndim > 0 and begins.numel() == len(begins) == self.length
        if begins.is_sparse or not (begins.shape == stand_in or of_rows):
            return None
        dtype = value.dtype if self.old.parameter.dtype == self.new.parameter.dtype else begins.dtype
        result = begins[: now[0]].to(dtype, copy=True)
        value = value.to(result.device)
        if self.by_rows:
            if len(value) != was[0] or value.shape[1:] != result.shape[1:]:
                return None
            return self._rows_of_sparse(value, dtype) if value.is_sparse else self._place(result, value)
        if value.is_sparse:
            return None
        if begins.shape != stand_in:
            return self._in_common(result, value)
        if value.shape != was:
            if value.numel() != was[0]:
                return None
            value = value.reshape(was[0], *(1 for _ in was[1:])).expand(was)
        return self._place(result.flatten(), value.flatten(), self.source.flatten()).view(now)

    def _place(self, result: Tensor, value: Tensor, source: Tensor | None = None) -> Tensor:
        source = self.source if source is None else source
        goes_on = source >= 0
        result[goes_on] = value[source[goes_on]].to(result.dtype)
        return result

    def _in_common(self, result: Tensor, value: Tensor) -> Tensor | None:
        """What entries (n,) of each row kept, as what the row keeps, where they agree."""
        goes_on = (self.source >= 0).flatten(1)
        values = value[self.source.flatten(1).clamp(min=0)]
        first = values.gather(1, goes_on.int().argmax(1, keepdim=True))
        if bool((goes_on & (values != first)).any()):
            return None
        rows = goes_on.any(1)
        result.view(-1)[rows] = first[rows, 0].to(result.dtype)
        return result

    def _rows_of_sparse(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """A sparse buffer of some rows (torch's SGD keeps one), its entries in the same order under new numbers."""
        slots = torch.full((len(value),), -1, device=value.device)
        goes_on = self.source >= 0
        slots[self.source[goes_on]] = goes_on.nonzero().squeeze(1)
        ids = slots[value._indices()[0]]
        entries = value._values()[ids >= 0].to(dtype)
        shape = (len(self.new.parameter), *value.shape[1:])
        return torch.sparse_coo_tensor(ids[ids >= 0][None], entries, shape, check_invariants=False)
