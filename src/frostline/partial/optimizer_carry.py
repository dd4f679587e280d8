"""An optimizer goes on under a new plan: its groups and its state follow what learns.

The optimizer holds Parameters of an earlier plan, or of none; watch.py knows which tensors they were parts of, and
where. What learns of a tensor now takes the place of what learned of it then, and gets its state (transfer.py). All of
it is worked out, and what cannot be is refused, before anything changes.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.errors import StaleOptimizerError
from frostline.partial.checks import refuse_sharded
from frostline.partial.model_tensors import Found, find_tensors
from frostline.partial.optimizer_guard import retired_part
from frostline.partial.optimizer_state import ANEW, Part, transferred


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


def carry(model: nn.Module, optimizers: Sequence[Optimizer], group: int | None, begins: Set[str]) -> None:
    """Let `optimizers` drive what learns in `model` now; see `Plan.carry`. `begins`: names of what nobody can hold."""
    _refuse_what_cannot_be_carried(model, optimizers, group)
    found = find_tensors(model)
    held = [[_held(one, optimizer) for one in found] for optimizer in optimizers]
    for optimizer, parts in zip(optimizers, held, strict=True):
        if not any(parts) and any(options["params"] for options in optimizer.param_groups):
            raise StaleOptimizerError(
                f"optimizer: {_name(optimizer)} holds no parameter of this model. Pass the one that trained it."
            )
    # Everything is worked out before anything changes.
    moves = [_move(optimizer, found, parts) for optimizer, parts in zip(optimizers, held, strict=True)]
    joining = [one for one, *parts in zip(found, *held, strict=True) if not any(parts)]
    _join(moves, joining, group, begins)
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
            raise TypeError(f"optimizer: {type(optimizer).__name__} is no torch.optim.Optimizer. Pass the one inside.")
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
            state = transferred(one, old, new, state, optimizer, optimizer.param_groups[index])
        if state:
            move.states[new.parameter] = state
    return move


def _join(moves: Sequence[Move], joining: Sequence[Found], group: int | None, begins: Set[str]) -> None:
    """Give what learns now and no optimizer holds a place: in `group` of the first, or in the only one there is."""
    parts = {one.names[0]: part for one in joining if (part := _now(one)) is not None}
    first, count = _name(moves[0].optimizer), len(moves[0].optimizer.param_groups)
    names = ", ".join(list(parts)[:4]) + (", ..." if len(parts) > 4 else "")
    if group is None and parts.keys() - begins:
        raise StaleOptimizerError(
            f"optimizer: {' and '.join(_name(move.optimizer) for move in moves)} held no part of {names}, which "
            "learned before. Pass the optimizer that did as well: plan.carry(first, second); or group=0, if none did."
        )
    if group is None and parts and (len(moves) > 1 or count > 1):
        raise StaleOptimizerError(
            f"optimizer: {names} begins to learn, and there are several groups. "
            f"Pass the one that it belongs to: group=0 to {count - 1} of {first}."
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
            "optimizer: LBFGS: it keeps one history ('old_dirs') of all that learned together, and goes on only where "
            "the same rows and entries learn, in the same order. Under this plan others do. " + ANEW
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
    return max(parts, key=lambda held: (bool(optimizer.state.get(held[1].parameter)), held[1].places is not None))
