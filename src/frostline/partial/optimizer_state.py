"""The state of what learned of a tensor, entry by entry, as the state of what learns of it now.

Letters used for shapes in this file:
    V  rows of a tensor             *  the rest of its shape
    R  rows that learned            R' rows that learn now (n, n': single entries)

Each entry of the new part has a place in the old one, from which its state comes, or none: it joins, and gets what the
optimizer begins with.

No list of optimizers says which state belongs to entries. The optimizer itself does, in the state that it begins with
for a stand-in: the rows in which something joins, and more, until the number of rows is like no other size. State of
the stand-in's shape belongs to entries; of its length and one number wide, to rows; a single number, to the part as a
whole. Any other state mixes entries (the factors of Adafactor) and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from frostline.errors import StaleOptimizerError
from frostline.partial.model_tensors import Found
from frostline.partial.optimizer_initial_state import fresh_state

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
    joining = (source < 0).reshape(len(source), -1).any(1).nonzero().squeeze(1)
    stand_in = _stand_in(new.parameter, joining)
    begins = fresh_state(optimizer, options, stand_in)
    who = f"optimizer: {type(optimizer).__name__}: {one.names[0]}"
    by_rows = old.by_rows(one.tensor) and new.by_rows(one.tensor)
    placing = _Placing(old.parameter, new.parameter, source, joining, stand_in.shape, by_rows)
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


def _stand_in(part: Tensor, joining: Tensor) -> Tensor:
    """The rows of a part (R', *) in which something joins, and more, so many that no other size is like theirs."""
    rows = joining.tolist()
    while len(rows) in (0, 1, *part.shape[1:]):
        rows.append(0)
    return part.detach()[torch.tensor(rows, device=part.device)]


@dataclass(frozen=True)
class _Placing:
    """The way of state from an old part to a new one.

    Attributes:
        old, new: The two parts.
        source: From `_source`; for rows if `by_rows`, else for entries.
        joining: The rows of the new part in which something joins.
        stand_in: Shape of the stand-in, whose first rows are these.
    """

    old: Tensor
    new: Tensor
    source: Tensor
    joining: Tensor
    stand_in: torch.Size
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
        of_entries = begins.shape == self.stand_in
        of_rows = begins.ndim > 0 and begins.numel() == len(begins) == self.stand_in[0]
        if begins.is_sparse or not (of_entries or of_rows):
            return None
        dtype = value.dtype if self.old.dtype == self.new.dtype else begins.dtype
        result = begins.new_zeros(len(self.new), *begins.shape[1:], dtype=dtype)
        result[self.joining] = begins[: len(self.joining)].to(dtype)
        value = value.to(result.device)
        if self.by_rows:
            if len(value) != len(self.old) or value.shape[1:] != result.shape[1:]:
                return None
            return self._rows_of_sparse(value, dtype) if value.is_sparse else _place(result, value, self.source)
        if value.is_sparse:
            return None
        if not of_entries:
            return self._in_common(result, value)
        if value.shape != self.old.shape:
            if value.numel() != len(self.old):
                return None
            value = value.reshape(-1, *(1 for _ in self.old.shape[1:])).expand(self.old.shape)
        return _place(result.flatten(), value.flatten(), self.source.flatten()).view(result.shape)

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
        shape = (len(self.new), *value.shape[1:])
        return torch.sparse_coo_tensor(ids[ids >= 0][None], entries, shape, check_invariants=False)


def _place(result: Tensor, value: Tensor, source: Tensor) -> Tensor:
    goes_on = source >= 0
    result[goes_on] = value[source[goes_on]].to(result.dtype)
    return result
