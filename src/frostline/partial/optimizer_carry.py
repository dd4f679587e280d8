"""Carry an optimizer over to a new plan: its parameter groups and its state follow what learns.

The optimizer holds Parameters from before this plan. optimizer_guard.py remembers of which tensors they were parts, and
at which indices. The Parameter that learns of a tensor now replaces the one that learned before, and gets its state.
Everything is computed and checked before anything changes.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.errors import StaleOptimizerError
from frostline.partial.checks import check_not_sharded
from frostline.partial.model_tensors import ModelTensor, find_tensors
from frostline.partial.optimizer_guard import replaced_part
from frostline.partial.optimizer_state import MAKE_NEW, Part, transferred
from frostline.partial.rollback import optimizers_restored_on_error
from frostline.partial.sharded import is_sharded
from frostline.printing import listed


@dataclass(frozen=True)
class Change:
    """How one optimizer will change.

    Attributes:
        optimizer: The optimizer.
        held: The Parameters of the model that it holds now, from this plan or earlier ones.
        groups: Each Parameter of the model that it will hold -> the index of its parameter group.
        states: Those of these Parameters that get state -> their state.
        unchanged: Those of `held` whose entries are the same as now -> the Parameters that replace them.
    """

    optimizer: Optimizer
    held: set[Tensor]
    groups: dict[Tensor, int]
    states: dict[Tensor, dict[str, Any]]
    unchanged: dict[Tensor, Tensor]


def carry(model: nn.Module, optimizers: Sequence[Optimizer], group: int | None, without_optimizer: Set[str]) -> None:
    """Update `optimizers` to what learns in `model` now; see `Plan.carry`."""
    _check_arguments(model, optimizers, group)
    tensors = find_tensors(model)
    held = [[_held(tensor, optimizer) for tensor in tensors] for optimizer in optimizers]
    for optimizer, parts in zip(optimizers, held, strict=True):
        if not any(parts) and any(options["params"] for options in optimizer.param_groups):
            raise StaleOptimizerError(
                f"optimizer: {_name(optimizer)} holds no parameter of this model. Pass the one that trained it."
            )
    # Nothing changes until every change is computed and checked.
    changes = [_change(optimizer, tensors, parts) for optimizer, parts in zip(optimizers, held, strict=True)]
    not_held = [tensor for tensor, *parts in zip(tensors, *held, strict=True) if not any(parts)]
    _add_to_group(changes, not_held, group, without_optimizer)
    new_groups = [_new_groups(model, change) for change in changes]
    for change, groups in zip(changes, new_groups, strict=True):
        _check_lbfgs(change, groups)
    with optimizers_restored_on_error(optimizers):
        for change, groups in zip(changes, new_groups, strict=True):
            for parameter in change.held:
                change.optimizer.state.pop(parameter, None)
            change.optimizer.state.update(change.states)
            for options, (names, parameters) in zip(change.optimizer.param_groups, groups, strict=True):
                options["params"][:] = parameters
                if "param_names" in options:
                    options["param_names"][:] = names


def _check_arguments(model: nn.Module, optimizers: Sequence[Optimizer], group: int | None) -> None:
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}. Pass the one inside."
            )
        for attribute, value in vars(optimizer).items():
            if isinstance(value, Optimizer):
                raise StaleOptimizerError(
                    f"optimizer: {_name(optimizer)} wraps another optimizer, which has the state. "
                    f"Pass that one: optimizer.{attribute}."
                )
    count = len(optimizers[0].param_groups)
    if group is not None and not 0 <= group < count:
        raise ValueError(f"group: {group}, but {_name(optimizers[0])} has groups 0 to {count - 1}.")
    check_not_sharded(model)


def _name(optimizer: Optimizer) -> str:
    return type(optimizer).__name__


def _change(optimizer: Optimizer, tensors: Sequence[ModelTensor], held: Sequence[list[tuple[int, Part]]]) -> Change:
    """Return the groups and the state that the optimizer will have for the tensors that it holds."""
    change = Change(optimizer, {part.parameter for parts in held for _, part in parts}, {}, {}, {})
    for tensor, parts in zip(tensors, held, strict=True):
        new = _learning(tensor)
        if not parts or new is None:
            continue
        index, old = _latest(optimizer, parts)
        change.groups[new.parameter] = index
        if old.same_entries(new):
            change.unchanged[old.parameter] = new.parameter
        if (state := optimizer.state.get(old.parameter)) and not old.same_entries(new):
            _check_whole(optimizer, tensor, old, new)
        if state:
            state = transferred(tensor, old, new, state, optimizer, optimizer.param_groups[index])
        if state:
            change.states[new.parameter] = state
    return change


def _check_whole(optimizer: Optimizer, tensor: ModelTensor, old: Part, new: Part) -> None:
    """Raise if a process holds only a shard of the state that is to be carried over."""
    if is_sharded(old.parameter) or is_sharded(new.parameter):
        raise StaleOptimizerError(
            f"optimizer: {_name(optimizer)}: the state of {tensor.name} is split over processes, and other entries of "
            f"it learn now. {MAKE_NEW}"
        )


def _add_to_group(
    changes: Sequence[Change], not_held: Sequence[ModelTensor], group: int | None, without_optimizer: Set[str]
) -> None:
    """Add what learns and no optimizer holds to `group` of the first optimizer, or to the only group there is."""
    parts = {tensor.name: part for tensor in not_held if (part := _learning(tensor)) is not None}
    first, count = _name(changes[0].optimizer), len(changes[0].optimizer.param_groups)
    names = listed(parts, most=4)
    if group is None and parts.keys() - without_optimizer:
        raise StaleOptimizerError(
            f"optimizer: {' and '.join(_name(change.optimizer) for change in changes)} held no part of {names}, which "
            "learned before. Pass the optimizer that did as well: plan.carry(first, second); or group=0 if none did."
        )
    if group is None and parts and (len(changes) > 1 or count > 1):
        raise StaleOptimizerError(
            f"optimizer: {names} did not learn before, and there are several groups. "
            f"Pass the one that it belongs to: group=0 to {count - 1} of {first}."
        )
    changes[0].groups.update({part.parameter: group or 0 for part in parts.values()})


def _new_groups(model: nn.Module, change: Change) -> list[tuple[list[str], list[Tensor]]]:
    """Return names and Parameters of each group; the model's are in its order, starting where its first one was."""
    order = [(name, parameter) for name, parameter in model.named_parameters() if parameter in change.groups]
    groups = []
    for index, options in enumerate(change.optimizer.param_groups):
        names = options.get("param_names", [""] * len(options["params"]))
        old = list(zip(names, options["params"], strict=True))
        first = next((i for i, (_, parameter) in enumerate(old) if parameter in change.held), len(old))
        others = [pair for pair in old[first:] if pair[1] not in change.held]
        new = [*old[:first], *(pair for pair in order if change.groups[pair[1]] == index), *others]
        groups.append(([name for name, _ in new], [parameter for _, parameter in new]))
    return groups


def _check_lbfgs(change: Change, groups: Sequence[tuple[list[str], list[Tensor]]]) -> None:
    """Raise if LBFGS, whose history is one flat vector of all parameters, would get other entries than it had."""
    if not (isinstance(change.optimizer, torch.optim.LBFGS) and change.optimizer.state):
        return
    ((_, new),) = groups
    old = change.optimizer.param_groups[0]["params"]
    if [id(change.unchanged.get(parameter, parameter)) for parameter in old] != [id(parameter) for parameter in new]:
        raise StaleOptimizerError(
            "optimizer: LBFGS: it keeps one history ('old_dirs') of all parameters, and can be carried over only if "
            "the same rows and entries learn, in the same order. Under this plan others do. " + MAKE_NEW
        )


def _held(tensor: ModelTensor, optimizer: Optimizer) -> list[tuple[int, Part]]:
    """Return the parts of one tensor, of this plan or earlier ones, that the optimizer holds, each after its group."""
    parts = []
    for index, group in enumerate(optimizer.param_groups):
        parameter: Tensor
        for parameter in group["params"]:
            if parameter is tensor.tensor:
                parts.append((index, Part(parameter, None)))
            elif tensor.indices is not None and parameter is tensor.learned:
                parts.append((index, Part(parameter, tensor.indices.index)))
            elif (replaced := replaced_part(parameter)) is not None and replaced[0] is tensor.tensor:
                parts.append((index, Part(parameter, replaced[1])))
    return parts


def _learning(tensor: ModelTensor) -> Part | None:
    """Return what learns of one tensor now; None if nothing does."""
    if tensor.learned is not None and tensor.indices is not None:
        return Part(tensor.learned, tensor.indices.index) if tensor.learned.requires_grad else None
    return Part(tensor.tensor, None) if tensor.tensor.requires_grad else None


def _latest(optimizer: Optimizer, parts: list[tuple[int, Part]]) -> tuple[int, Part]:
    """Return the part that learned last: one with state, rather than the whole tensor, which may be a frozen part."""
    return max(parts, key=lambda held: (bool(optimizer.state.get(held[1].parameter)), held[1].index is not None))
