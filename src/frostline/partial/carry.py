"""An optimizer goes on under a new plan: its groups and its state follow what learns.

Letters used for shapes in this file:
    V  rows of a tensor             *  the rest of its shape
    R  rows that learned, R' rows that learn now

A part is what learns of one tensor: the whole of it, some rows or some entries. The optimizer holds an old part, the
model has a new one, and both say where they belong in the tensor. So each entry of the new part has a place in the old
one, from which its state comes, or none: it joins, and gets what the optimizer begins with.

No list of optimizers says which state belongs to entries: the optimizer itself does, in the state that it begins with
for a stand-in one or two rows longer than the new part, so long that none of its sizes is like another. State of that
shape belongs to entries; of that length and one number wide, to rows; a single number, to the part as a whole. Any
other state mixes entries (the factors of Adafactor, the history of LBFGS) and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.errors import StaleOptimizerError
from frostline.partial.find import Found, find_tensors
from frostline.partial.fresh import fresh_state
from frostline.partial.refuse import refuse_sharded
from frostline.partial.watch import retired_part

_ANEW = "Make a new optimizer from plan.parameters()."


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


@dataclass(frozen=True)
class Move:
    """What becomes of one optimizer.

    Attributes:
        optimizer: It.
        ours: The Parameters of the model that it holds, of whichever plan.
        groups: What it is to hold of the model -> the index of its group.
        states: The state that they get, where there is some.
        as_it_was: Those of `ours` that go on entry by entry -> what takes their place.
    """

    optimizer: Optimizer
    ours: set[Tensor]
    groups: dict[Tensor, int]
    states: dict[Tensor, dict[str, Any]]
    as_it_was: dict[Tensor, Tensor]


def carry(model: nn.Module, optimizers: Sequence[Optimizer], group: int | None) -> None:
    """Let `optimizers` drive what learns in `model` now; see `Plan.carry`."""
    _refuse_what_cannot_be_carried(model, optimizers, group)
    found = find_tensors(model)
    held = [[_held(one, optimizer) for one in found] for optimizer in optimizers]
    for optimizer, parts in zip(optimizers, held, strict=True):
        if not any(parts):
            raise StaleOptimizerError(
                f"optimizer: {_name(optimizer)} holds no parameter of this model. Pass the one that trained it."
            )
    # Everything is worked out before anything changes.
    moves = [_move(optimizer, found, parts) for optimizer, parts in zip(optimizers, held, strict=True)]
    joining = [one for one, *parts in zip(found, *held, strict=True) if not any(parts)]
    _join(moves, joining, group)
    listings = [_listings(model, move) for move in moves]
    for move, listing in zip(moves, listings, strict=True):
        _refuse_to_change_a_common_history(move, listing)
    for move, listing in zip(moves, listings, strict=True):
        for parameter in move.ours:
            move.optimizer.state.pop(parameter, None)
        move.optimizer.state.update(move.states)
        for options, (names, parameters) in zip(move.optimizer.param_groups, listing, strict=True):
            options["params"][:] = parameters
            if "param_names" in options:
                options["param_names"][:] = names


def _refuse_what_cannot_be_carried(model: nn.Module, optimizers: Sequence[Optimizer], group: int | None) -> None:
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: {optimizer!r} is no torch.optim.Optimizer. Pass the optimizer itself.")
        for attribute, value in vars(optimizer).items():
            if isinstance(value, Optimizer):
                raise StaleOptimizerError(
                    f"optimizer: {_name(optimizer)} wraps another optimizer, which has the state. "
                    f"Pass that one: optimizer.{attribute}."
                )
    count = len(optimizers[0].param_groups)
    if group is not None and not 0 <= group < count:
        raise ValueError(f"group: {group}, but {_name(optimizers[0])} has groups 0 to {count - 1}.")
    refuse_sharded(model)


def _name(optimizer: Optimizer) -> str:
    return type(optimizer).__name__


def _move(optimizer: Optimizer, found: Sequence[Found], held: Sequence[list[tuple[int, Part]]]) -> Move:
    ours = {part.parameter for parts in held for _, part in parts}
    move = Move(optimizer, ours, {}, {}, {})
    for one, parts in zip(found, held, strict=True):
        new = _now(one)
        if not parts or new is None:
            continue
        index, old = _latest(optimizer, parts)
        move.groups[new.parameter] = index
        if old.same_entries(new):
            move.as_it_was[old.parameter] = new.parameter
        if state := optimizer.state.get(old.parameter):
            state = _carried(one, old, new, state, optimizer, optimizer.param_groups[index])
        if state:
            move.states[new.parameter] = state
    return move


def _join(moves: Sequence[Move], joining: Sequence[Found], group: int | None) -> None:
    """Give what learns now and no optimizer held a place: in `group` of the first, or the only one there is."""
    parts = {one.names[0]: part for one in joining if (part := _now(one)) is not None}
    count = len(moves[0].optimizer.param_groups)
    if parts and group is None and (len(moves) > 1 or count > 1):
        names = ", ".join(list(parts)[:4]) + (", ..." if len(parts) > 4 else "")
        raise StaleOptimizerError(
            f"optimizer: {names} was in none, so which group it is to join is open. "
            f"Pass group=, 0 to {count - 1} of {_name(moves[0].optimizer)}, or take it out of the plan."
        )
    moves[0].groups.update({part.parameter: group or 0 for part in parts.values()})


def _listings(model: nn.Module, move: Move) -> list[tuple[list[str], list[Tensor]]]:
    """For each group, names and Parameters: what learns now stands where the model's first one stood, in its order."""
    order = [(name, parameter) for name, parameter in model.named_parameters() if parameter in move.groups]
    listings = []
    for index, options in enumerate(move.optimizer.param_groups):
        names = options.get("param_names", [""] * len(options["params"]))
        old = list(zip(names, options["params"], strict=True))
        first = next((i for i, (_, parameter) in enumerate(old) if parameter in move.ours), len(old))
        others = [pair for pair in old[first:] if pair[1] not in move.ours]
        new = [*old[:first], *(pair for pair in order if move.groups[pair[1]] == index), *others]
        listings.append(([name for name, _ in new], [parameter for _, parameter in new]))
    return listings


def _refuse_to_change_a_common_history(move: Move, listings: Sequence[tuple[list[str], list[Tensor]]]) -> None:
    if not (isinstance(move.optimizer, torch.optim.LBFGS) and move.optimizer.state):
        return
    ((_, new),) = listings
    old = move.optimizer.param_groups[0]["params"]
    if [id(move.as_it_was.get(parameter, parameter)) for parameter in old] != [id(parameter) for parameter in new]:
        raise StaleOptimizerError(
            "optimizer: LBFGS: its state 'old_dirs' is of all that learned together and fits nothing else. " + _ANEW
        )


def _held(one: Found, optimizer: Optimizer) -> list[tuple[int, Part]]:
    """The parts of one tensor that the optimizer holds, of whichever plan, each with the index of its group."""
    parts = []
    for index, group in enumerate(optimizer.param_groups):
        parameter: Tensor
        for parameter in group["params"]:
            if parameter is one.tensor:
                parts.append((index, Part(parameter, None)))
            elif one.layout is not None and parameter is one.learned:
                parts.append((index, Part(parameter, one.layout.places)))
            elif (retired := retired_part(parameter)) is not None and retired[0] is one.tensor:
                parts.append((index, Part(parameter, retired[1])))
    return parts


def _now(one: Found) -> Part | None:
    """What learns of one tensor as its model is now."""
    if one.learned is not None and one.layout is not None:
        return Part(one.learned, one.layout.places) if one.learned.requires_grad else None
    return Part(one.tensor, None) if one.tensor.requires_grad else None


def _latest(optimizer: Optimizer, parts: list[tuple[int, Part]]) -> tuple[int, Part]:
    """The part that learned last: one with state, rather than the tensor as a whole, which may be a frozen part."""
    ranks = [(bool(optimizer.state.get(part.parameter)), part.places is not None) for _, part in parts]
    return parts[max(range(len(parts)), key=lambda i: (*ranks[i], i))]


def _carried(
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
        raise StaleOptimizerError(f"{what} belongs to no single rows or entries and cannot follow them. {_ANEW}")

    def _tensor(self, value: Tensor, begins: Tensor) -> Tensor | None:
        was, now = self.old.parameter.shape, self.new.parameter.shape
        stand_in = (self.length, *now[1:])
        of_rows = begins.ndim > 0 and begins.numel() == len(begins) == self.length
        if not (begins.shape == stand_in or of_rows):
            return None
        dtype = value.dtype if self.old.parameter.dtype == self.new.parameter.dtype else begins.dtype
        result = begins[: now[0]].to(dtype, copy=True)
        value = value.to(result.device)
        if self.by_rows:
            if len(value) != was[0] or value.shape[1:] != result.shape[1:]:
                return None
            return self._rows_of_sparse(value) if value.is_sparse else self._place(result, value)
        if begins.shape != stand_in or value.is_sparse:
            return None  # what a row has in common, and single entries of it
        if value.shape != was:
            if value.numel() != was[0]:
                return None
            value = value.view(was[0], *(1 for _ in was[1:])).expand(was)
        return self._place(result.flatten(), value.flatten(), self.source.flatten()).view(now)

    def _place(self, result: Tensor, value: Tensor, source: Tensor | None = None) -> Tensor:
        source = self.source if source is None else source
        goes_on = source >= 0
        result[goes_on] = value[source[goes_on]].to(result.dtype)
        return result

    def _rows_of_sparse(self, value: Tensor) -> Tensor:
        """A sparse buffer of some rows (torch's SGD keeps one), its entries in the same order under new numbers."""
        slots = torch.full((len(value),), -1, device=value.device)
        goes_on = self.source >= 0
        slots[self.source[goes_on]] = goes_on.nonzero().squeeze(1)
        ids = slots[value._indices()[0]]
        entries = value._values()[ids >= 0].to(self.new.parameter.dtype)
        shape = (len(self.new.parameter), *value.shape[1:])
        return torch.sparse_coo_tensor(ids[ids >= 0][None], entries, shape, check_invariants=False)
