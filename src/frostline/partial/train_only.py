"""Choose what learns in a model by names and patterns, and undo it.

Three steps: find every tensor with all its names (tied names are one tensor), resolve a selection for each, then carry
all of it out. Everything that can be wrong is found before the first tensor changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn

from frostline.errors import FrostlineError, PatternError, SelectionError
from frostline.partial import sharded, tensor_parallel
from frostline.partial.arguments import check_arguments, check_model, check_patterns
from frostline.partial.checks import (
    check_mapped_selection,
    check_memory,
    check_not_sharded,
    check_not_wrapped,
    check_nothing_lost,
    check_ties,
    check_unseen_uses,
)
from frostline.partial.model_tensors import ModelTensor, State, find_tensors, learned_name, only_looks_up, state_of
from frostline.partial.module import partial_class, plain_class
from frostline.partial.optimizer_guard import mark_replaced, watch
from frostline.partial.plan import Plan, line_of
from frostline.partial.quantized import why_it_cannot_learn
from frostline.partial.rollback import model_restored_on_error, set_class
from frostline.partial.selections import All, Selection, nothing
from frostline.partial.tensor.indices import LearnedIndices
from frostline.partial.tensor.memory import Memory

_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def train_only(model: nn.Module, selections: Mapping[str, Selection], *, freeze_running_stats: bool = False) -> Plan:
    """Let only the named tensors, rows or entries of `model` learn; everything else keeps every bit.

    Args:
        model: Any module. It is changed in place and stays the same object, with the same classes (by isinstance),
            state-dict keys and values. It comes before DistributedDataParallel and `fully_shard`; before or after
            tensor parallelism. Pass the whole model: a tie to a module outside `model` cannot be seen.
        selections: Name or pattern (`*`, `?`, `[..]`) over `model.named_parameters()` -> `everything`, `nothing`,
            `rows(...)` or `entries(...)`. An exact name beats a pattern; among patterns the last one wins; what is not
            named is frozen. A tensor under several names (tied) is one tensor; use any of its names.
        freeze_running_stats: Freeze the running statistics (BatchNorm) of modules that do not learn, by keeping those
            modules in eval mode even when `model.train()` is called.

    Returns:
        The plan: print it, and give `plan.parameters()` to a new optimizer. An optimizer made earlier holds the frozen
        parts, and its next step raises StaleOptimizerError; `plan.carry(optimizer)` updates it.

    Raises:
        PatternError: A name or pattern matches no parameter, or two names of one tensor have different selections.
        SelectionError: A selection does not fit its tensor (RowError, ShapeError name the ids or the shapes).
        PartialTensorError: The model cannot be partly frozen in this state without training it wrongly.
            Whatever is raised, Ctrl-C included, the model is as it was before.

    Cost: a copy of what learns, and a second one until it returns; for rows an int32 map of V entries, made once.
    Called again, it starts from the values as they are now and clears every `.grad`.

    Example:
        >>> import frostline as fl
        >>> model = nn.ModuleDict({"embed": nn.Embedding(5, 2), "head": nn.Linear(2, 3)})
        >>> learns = {"head.*": fl.everything, "head.bias": fl.nothing, "embed.weight": fl.rows([1, 4])}
        >>> plan = fl.train_only(model, learns)
        >>> print(plan)
        tensor        shape          what learns    parameters  Adam state
        ------------------------------------------------------------------
        embed.weight  5 x 2          2 of 5 rows             4           8
        head.weight   3 x 2          everything              6          12
        head.bias     3              nothing                 0           0
        ------------------------------------------------------------------
        total         19 parameters  52.6 % learns          10          20
    """
    check_arguments(model, selections)
    check_not_wrapped(model)
    tensors = find_tensors(model)
    for tensor in tensors:
        tensor.sync()
    check_patterns(selections, tensors)
    choices = [_choose(tensor, selections) for tensor in tensors]
    check_unseen_uses(
        model, tensors, [tensor for tensor, choice in zip(tensors, choices, strict=True) if choice.values is not None]
    )
    for tensor, choice in zip(tensors, choices, strict=True):
        check_ties(model, tensor)
        check_nothing_lost(tensor, choice.learns)
        if choice.values is not None:
            check_memory(tensor)
    _make_classes(tensors, choices)
    frozen = {tensor.name for tensor in tensors if tensor.learned is None and not tensor.tensor.requires_grad}
    with model_restored_on_error(model, tensors):
        for module in model.modules():
            _record_requires_grad(module)
        for tensor, choice in zip(tensors, choices, strict=True):
            _merge_parts(tensor)
            tensor.tensor.grad = None
            tensor.tensor.requires_grad_(choice.learns is True)
            _record_frozen(tensor, choice.learns is False)
            if isinstance(choice.learns, LearnedIndices) and choice.values is not None:
                _split(model, tensor, choice.learns, choice.values)
        norms = {name: module for name, module in model.named_modules() if _has_moving_stats(module)}
        _set_classes(model, frozen_stats=set(norms.values()) if freeze_running_stats else set())
        lines = [line_of(tensor, choice.learns) for tensor, choice in zip(tensors, choices, strict=True)]
        newly_learning = {line.name for line in lines if line.learns != "nothing"} & frozen
        moving_stats, frozen_stats = ((), tuple(norms)) if freeze_running_stats else (tuple(norms), ())
        return Plan(model, lines, moving_stats, frozen_stats, newly_learning)


def merge(model: nn.Module) -> None:
    """Make `model` a plain model again: its classes, its keys, `requires_grad` as before, learned values merged in.

    Args:
        model: A module that `train_only` changed, or any ancestor of one. A plain model is not changed.

    Raises:
        PartialTensorError: The model is sharded (FSDP2), where the parts cannot be merged in place; or rows of a mapped
            table learned. A mapped table of which nothing learned stays mapped.

    Cost: one write of what learned; no copy of a table. A learned part in float32 is rounded to the table's dtype.

    Example:
        >>> import frostline as fl
        >>> embedding = nn.Embedding(5, 2)
        >>> plan = fl.train_only(embedding, {"weight": fl.rows([1])})
        >>> fl.merge(embedding)
        >>> type(embedding) is nn.Embedding, embedding.weight.requires_grad
        (True, True)
    """
    check_model(model)
    check_not_sharded(model)
    tensors = find_tensors(model)
    for tensor in tensors:
        check_ties(model, tensor)
        check_nothing_lost(tensor, False)
    with model_restored_on_error(model, tensors):
        for module in model.modules():
            _record_requires_grad(module)
        for tensor in tensors:
            _merge_parts(tensor)
            if not tensor.mapped:
                owners = [(cast(State, state_of(module)), name) for module, name in tensor.owners]
                tensor.tensor.requires_grad_(any(state.requires_grad[name] for state, name in owners))
        _set_classes(model, frozen_stats=set())
        for module in model.modules():
            if (state := state_of(module)) is not None and not state.mapped:
                del module.__dict__["_frostline"]


@dataclass(frozen=True)
class Choice:
    """What learns of one tensor.

    Attributes:
        learns: All of it (True), none of it (False), or some indices.
        values: The values at those indices, as they are now, in the dtype in which they will learn.
    """

    learns: LearnedIndices | bool
    values: Tensor | None = None


def _choose(tensor: ModelTensor, selections: Mapping[str, Selection]) -> Choice:
    selection, exact = _find_selection(tensor, selections)
    learns = _resolve(tensor, selection, exact)
    return Choice(learns, _values(tensor, learns, selection) if isinstance(learns, LearnedIndices) else None)


def _find_selection(tensor: ModelTensor, selections: Mapping[str, Selection]) -> tuple[Selection, bool]:
    """Return the selection for one tensor, and whether it was named exactly."""
    exact = [name for name in tensor.names if name in selections]
    for name in exact[1:]:
        if not _same(selections[exact[0]], selections[name], tensor):
            raise PatternError(
                f"{exact[0]} and {name} are one tensor (tied), but they are given different selections: "
                f"{selections[exact[0]]} and {selections[name]}. Name the tensor once."
            )
    if exact:
        return selections[exact[0]], True
    matching = [pattern for pattern in selections if any(fnmatchcase(name, pattern) for name in tensor.names)]
    return (selections[matching[-1]], False) if matching else (nothing, False)


def _same(first: Selection, second: Selection, tensor: ModelTensor) -> bool:
    a, b = _resolve(tensor, first, True), _resolve(tensor, second, True)
    if isinstance(a, LearnedIndices) and isinstance(b, LearnedIndices):
        return a.same_entries(b)
    return a is b


def _resolve(tensor: ModelTensor, selection: Selection, exact: bool) -> LearnedIndices | bool:
    """Return what of the tensor learns under `selection`; errors name the tensor."""
    name = tensor.name
    if isinstance(tensor.tensor, nn.UninitializedParameter):
        raise SelectionError(f"{name}: the module is lazy and has no shape yet. Run one batch through the model first.")
    if why := why_it_cannot_learn(tensor.tensor):
        if exact and selection is not nothing:
            raise SelectionError(f"{name}: {why}. Choose fl.nothing for it.")
        return False
    if tensor.mapped:
        if selection is nothing or (isinstance(selection, All) and not exact):  # "*": fl.everything skips it
            return False
        check_mapped_selection(tensor, selection)
    padding = {index for module, _ in tensor.owners if isinstance(index := getattr(module, "padding_idx", None), int)}
    if selection.dtype is not None and tensor.tensor.is_complex() and not selection.dtype.is_complex:
        raise SelectionError(f"{name}: dtype: {selection.dtype} cannot hold {tensor.tensor.dtype}. Leave dtype out.")
    try:
        learns = selection.resolve(tensor.tensor, tuple(padding))
    except FrostlineError as error:
        raise type(error)(f"{name}: {error}") from None
    if not isinstance(learns, LearnedIndices):
        return learns
    for module, own_name in tensor.owners:
        if getattr(module, "max_norm", None) is not None:
            raise SelectionError(
                f"{name}: max_norm={module.max_norm} rewrites frozen rows in the forward. Set max_norm=None."
            )
        attribute = learned_name(own_name)
        if hasattr(module, attribute) and tensor.indices is None:
            raise SelectionError(f"{name}: its module already has an attribute {attribute!r}. Rename that attribute.")
    return replace(learns, read_only=tensor.mapped)


def _record_requires_grad(module: nn.Module) -> None:
    """Record `requires_grad` as it was before the first plan."""
    state = state_of(module)
    if state is None:
        state = module.__dict__["_frostline"] = State()
    hidden = {learned_name(name) for name in state.partial}
    for name, parameter in module._parameters.items():
        if parameter is not None and name not in hidden:
            state.requires_grad.setdefault(name, parameter.requires_grad)


def _record_frozen(tensor: ModelTensor, by_plan: bool) -> None:
    """Record whether the plan froze the whole tensor: the user may freeze others afterwards."""
    for module, name in tensor.owners:
        if (state := state_of(module)) is not None:
            state.frozen_by_plan = state.frozen_by_plan | {name} if by_plan else state.frozen_by_plan - {name}


def _values(tensor: ModelTensor, learns: LearnedIndices, selection: Selection) -> Tensor:
    """Return the values at the indices as they are now, in the dtype in which they will learn."""
    dtype = selection.dtype or tensor.tensor.dtype
    tensor_parallel.check_split(tensor.name, tensor.tensor, learns)
    with torch.no_grad():
        values = sharded.gather(learns, tensor.tensor).to(dtype)
        if tensor.indices is None or tensor.learned is None:
            return values
        # Values that learned so far are in the learned part, in float32 with digits that the table's dtype cannot hold.
        if learns.row_to_slot is not None and tensor.indices.row_to_slot is not None:
            slots = tensor.indices.row_to_slot[learns.flat]  # (R,), -1: did not learn so far
            values[slots >= 0] = tensor.learned[slots[slots >= 0]].to(dtype)
            return values
        full = tensor.tensor.to(dtype, copy=True)  # for entries a full copy, once for each plan
        sharded.scatter_(tensor.indices, full, tensor.learned)
        return sharded.gather(learns, full)


def _make_classes(tensors: Sequence[ModelTensor], choices: Sequence[Choice]) -> None:
    """Make the classes that the plan needs, before anything changes: a class may not allow a subclass."""
    names: dict[nn.Module, list[str]] = {}
    for tensor, choice in zip(tensors, choices, strict=True):
        for module, name in tensor.owners:
            if isinstance(choice.learns, LearnedIndices) or tensor.mapped:
                names.setdefault(module, []).append(name)
    for module, partial_names in names.items():
        partial_class(plain_class(module), tuple(sorted(partial_names)))


def _merge_parts(tensor: ModelTensor) -> None:
    """Write the learned part into the frozen part, and make the tensor a plain Parameter again."""
    if tensor.memory is None or tensor.learned is None:
        return
    tensor.sync()
    tensor.memory.in_use = False
    tensor.tensor.grad = tensor.learned.grad = None
    _inherit(tensor.tensor, tensor.learned)
    mark_replaced(tensor.tensor, tensor.learned, tensor.memory.indices.index)
    for module, name in tensor.owners:
        state = cast(State, state_of(module))
        state.shown.pop(name, None)
        if state.partial.pop(name, None) is not None:
            del module._parameters[learned_name(name)]
    tensor.memory = tensor.learned = None


def _split(model: nn.Module, tensor: ModelTensor, indices: LearnedIndices, values: Tensor) -> None:
    """Give every owner of the tensor the same two parts."""
    learned = nn.Parameter(values)
    _inherit(learned, tensor.tensor)
    # A compiled backward calls them with None on a frozen part of which other code has set `requires_grad`.
    for hooks in _HOOKS:
        if getattr(tensor.tensor, hooks) is not None:
            setattr(tensor.tensor, hooks, {})
    memory = Memory(indices, all(only_looks_up(module) for module, _ in tensor.owners))
    tensor_parallel.note_parts(memory, tensor.tensor, learned)
    watch(tensor.tensor, learned, [module for module, _ in tensor.owners], model)
    for module, name in tensor.owners:
        module._parameters[learned_name(name)] = learned
        cast(State, state_of(module)).partial[name] = memory


def _inherit(tensor: Tensor, source: Tensor) -> None:
    """Give `tensor` the hooks and attributes of `source`: they belong to what learns, under this plan and the next.

    The very dictionaries of hooks, so that a handle removes its hook from both, and a new hook is there for both.
    """
    for hooks in _HOOKS:
        if (registered := getattr(source, hooks)) is not None:
            setattr(tensor, hooks, registered)
    vars(tensor).update(vars(source))


def _has_moving_stats(module: nn.Module) -> bool:
    """Return whether `module` updates running statistics in train mode although none of its parameters learns."""
    keeps = isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None
    return keeps and not any(parameter.requires_grad for parameter in module.parameters())


def _set_classes(model: nn.Module, frozen_stats: set[nn.Module]) -> None:
    """Give every module the class, and every norm the mode, that the new plan needs."""
    for module in model.modules():
        state = state_of(module)
        if state is None:
            continue
        had_frozen_stats, state.frozen_stats = state.frozen_stats, module in frozen_stats
        names = tuple(sorted({*state.partial, *state.mapped}))
        cls: Any = partial_class(plain_class(module), names) if names or state.frozen_stats else plain_class(module)
        if type(module) is not cls:
            set_class(module, cls)
        if state.frozen_stats and not had_frozen_stats:
            module.train(module.training)
        elif had_frozen_stats and not state.frozen_stats:
            module.train(state.training)
        if isinstance(module, nn.RNNBase) and not names:
            module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]
