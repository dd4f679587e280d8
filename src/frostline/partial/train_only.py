"""Names and patterns over a model's tensors -> what learns, carried out on the modules; and back again.

Three steps: find every tensor with all its names (tied names are one tensor), choose a selection for each, then carry
all of it out. Everything that can be wrong is found before the first tensor changes.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn

from frostline.errors import FrostlineError, PatternError, SelectionError
from frostline.partial.checks import (
    refuse_for_mapped,
    refuse_outside_ties,
    refuse_sharded,
    refuse_to_forget,
    refuse_unseen_uses,
    refuse_wrapped,
)
from frostline.partial.indices import Layout, writable
from frostline.partial.model_tensors import Found, find_tensors
from frostline.partial.module import (
    State,
    learned_name,
    partial_class,
    plain_class,
    state_of,
)
from frostline.partial.optimizer_guard import retire, watch
from frostline.partial.plan import Line, Plan
from frostline.partial.selections import All, Selection, nothing


def train_only(model: nn.Module, selections: Mapping[str, Selection], *, hold_statistics: bool = False) -> Plan:
    """Let only the named tensors, rows or entries of `model` learn; everything else keeps every bit.

    Args:
        model: Any module. It is changed in place and stays the same object, with the same classes (by isinstance),
            state-dict keys and values. It comes before DistributedDataParallel and `fully_shard`. Pass the whole
            model: a tie to a module outside `model` cannot be seen.
        selections: Name or pattern (`*`, `?`, `[..]`) over `model.named_parameters()` -> `everything`, `nothing`,
            `rows(...)` or `entries(...)`. An exact name beats a pattern; among patterns the last one wins; what is not
            named is frozen. A tensor under several names (tied) is one tensor, and any of its names will do.
        hold_statistics: Keep the running statistics (BatchNorm) of modules that do not learn, by keeping those modules
            in eval mode even when `model.train()` is called.

    Returns:
        The plan: print it, and give `plan.parameters()` to an optimizer. Make the optimizer anew: one made earlier
        holds the frozen parts, and its next step raises StaleOptimizerError.

    Raises:
        PatternError: A name or pattern fits no parameter, or two exact names of one tensor contradict each other.
        SelectionError: A selection does not fit its tensor (RowError, ShapeError name the ids or the shapes).
        PartialTensorError: The model cannot be partly frozen here without being silently wrong.

    Cost: one copy of what learns; for rows an int32 map of V entries, made once. Called again, it starts from the
    values as they are now and clears every `.grad`.

    Example:
        >>> import frostline as fl
        >>> model = nn.ModuleDict({"embed": nn.Embedding(5, 2), "head": nn.Linear(2, 3)})
        >>> learns = {"head.*": fl.everything, "head.bias": fl.nothing, "embed.weight": fl.rows([1, 4])}
        >>> plan = fl.train_only(model, learns)
        >>> print(plan)
        tensor        shape       what learns    numbers  at Adam
        ---------------------------------------------------------
        embed.weight  5 x 2       2 of 5 rows          4        8
        head.weight   3 x 2       everything           6       12
        head.bias     3           nothing              0        0
        ---------------------------------------------------------
        total         19 numbers  52.6 % learns       10       20
    """
    if not isinstance(selections, Mapping):
        raise TypeError(f"selections: {selections!r} is no mapping. Pass {{'name or pattern': fl.rows(ids), ...}}.")
    refuse_wrapped(model)
    found = find_tensors(model)
    _refuse_unmatched(selections, found)
    wishes = [_wish(one, selections) for one in found]
    refuse_unseen_uses(model, found, [one for one, wish in zip(found, wishes, strict=True) if wish.values is not None])
    for one, wish in zip(found, wishes, strict=True):
        refuse_outside_ties(model, one)
        refuse_to_forget(one, wish.layout)
    _make_classes(found, wishes)
    frozen = {one.names[0] for one in found if one.learned is None and not one.tensor.requires_grad}
    # From here on nothing is refused.
    for module in model.modules():
        _remember(module)
    for one, wish in zip(found, wishes, strict=True):
        _join(one)
        one.tensor.grad = None
        one.tensor.requires_grad_(wish.layout is True)
        if isinstance(wish.layout, Layout) and wish.values is not None:
            _split(model, one, wish.layout, wish.values)
    norms = {name: module for name, module in model.named_modules() if _moves_though_frozen(module)}
    _set_classes(model, held=set(norms.values()) if hold_statistics else set())
    lines = [_line(one, wish.layout) for one, wish in zip(found, wishes, strict=True)]
    begins = {line.name for line in lines if line.learns != "nothing"} & frozen
    return Plan(model, lines, () if hold_statistics else tuple(norms), tuple(norms) if hold_statistics else (), begins)


def merge(model: nn.Module) -> None:
    """Make `model` a plain model again: its classes, its keys, `requires_grad` as before, learned values in place.

    Args:
        model: A module that `train_only` changed, or any ancestor of one. A plain model is left as it is.

    Raises:
        PartialTensorError: The model is sharded (FSDP2), where the parts cannot be joined in place; or rows of a mapped
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
    refuse_sharded(model)
    found = find_tensors(model)
    for one in found:
        refuse_outside_ties(model, one)
        refuse_to_forget(one, False)
    for module in model.modules():
        _remember(module)
    for one in found:
        _join(one)
        if one.mapped:
            continue
        one.tensor.requires_grad_(any(cast(State, state_of(m)).requires_grad[name] for m, name in one.owners))
    _set_classes(model, held=set())
    for module in model.modules():
        if (state := state_of(module)) is not None and not state.mapped:
            del module.__dict__["_frostline"]


@dataclass(frozen=True)
class Wish:
    """What is to learn of one tensor: all (True), none (False), or the places of a layout and their values."""

    layout: Layout | bool
    values: Tensor | None = None


def _wish(one: Found, selections: Mapping[str, Selection]) -> Wish:
    selection, exact = _choose(one, selections)
    layout = _resolve(one, selection, exact)
    return Wish(layout, _learned_values(one, layout, selection) if isinstance(layout, Layout) else None)


def _choose(one: Found, selections: Mapping[str, Selection]) -> tuple[Selection, bool]:
    """The selection for one tensor, and whether it was named exactly."""
    exact = [name for name in one.names if name in selections]
    for name in exact[1:]:
        if not _same(selections[exact[0]], selections[name], one):
            raise PatternError(
                f"{exact[0]} and {name} are one tensor (tied), but they are given different selections: "
                f"{selections[exact[0]]} and {selections[name]}. Name it once."
            )
    if exact:
        return selections[exact[0]], True
    fitting = [pattern for pattern in selections if any(fnmatchcase(name, pattern) for name in one.names)]
    return (selections[fitting[-1]], False) if fitting else (nothing, False)


def _same(first: Selection, second: Selection, one: Found) -> bool:
    a, b = _resolve(one, first, True), _resolve(one, second, True)
    if isinstance(a, Layout) and isinstance(b, Layout):
        return a.same_places(b)
    return a is b


def _refuse_unmatched(selections: Mapping[str, Selection], found: list[Found]) -> None:
    names = [name for one in found for name in one.names]
    for pattern in selections:
        if not any(name == pattern or fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=4, cutoff=0.3) or names[:4]
            raise PatternError(f"{pattern!r} fits no parameter. The nearest names are: {', '.join(near) or 'none'}.")


def _resolve(one: Found, selection: Selection, exact: bool) -> Layout | bool:
    """What of one tensor learns: all (True), none (False) or a Layout; errors name the tensor."""
    name = one.names[0]
    if not isinstance(selection, Selection):
        raise TypeError(
            f"{name}: {selection!r} is no selection. Pass fl.everything, fl.nothing, fl.rows(ids) or fl.entries(mask)."
        )
    if isinstance(one.tensor, nn.UninitializedParameter):
        raise SelectionError(f"{name}: the module is lazy and has no shape yet. Run one batch through the model first.")
    if not (one.tensor.is_floating_point() or one.tensor.is_complex()):
        if exact and selection is not nothing:
            raise SelectionError(f"{name}: {one.tensor.dtype} cannot learn. Choose fl.nothing for it.")
        return False
    if one.mapped and selection is not nothing and (exact or not isinstance(selection, All)):
        refuse_for_mapped(one, selection)
    elif one.mapped:
        return False
    padding = {index for module, _ in one.owners if isinstance(index := getattr(module, "padding_idx", None), int)}
    if selection.dtype is not None and one.tensor.is_complex() and not selection.dtype.is_complex:
        raise SelectionError(f"{name}: dtype: {selection.dtype} cannot hold {one.tensor.dtype}. Leave dtype out.")
    try:
        layout = selection.places(one.tensor, tuple(padding))
    except FrostlineError as error:
        raise type(error)(f"{name}: {error}") from None
    if isinstance(layout, Layout):
        layout = replace(layout, read_only=one.mapped)
        for module, own in one.owners:
            if getattr(module, "max_norm", None) is not None:
                raise SelectionError(
                    f"{name}: max_norm={module.max_norm} rewrites frozen rows in the forward. Set max_norm=None."
                )
            taken = learned_name(own)
            if hasattr(module, taken) and one.layout is None:
                raise SelectionError(f"{name}: its module already has an attribute {taken!r}. Rename that one.")
    return layout


def _remember(module: nn.Module) -> None:
    """Note `requires_grad` as it was before the first plan."""
    state = state_of(module)
    if state is None:
        state = module.__dict__["_frostline"] = State()
    hidden = {learned_name(name) for name in state.layouts}
    for name, parameter in module._parameters.items():
        if parameter is not None and name not in hidden:
            state.requires_grad.setdefault(name, parameter.requires_grad)


def _learned_values(one: Found, layout: Layout, selection: Selection) -> Tensor:
    """The values that `layout` selects, as they are now, in the dtype in which they will learn."""
    dtype = selection.dtype or one.tensor.dtype
    with torch.no_grad():
        values = layout.take(one.tensor).to(dtype)
        if one.layout is None or one.learned is None:
            return values
        if layout.slots is not None and one.layout.slots is not None:
            slots = one.layout.slots[layout.places[0]]  # (R,) the row's place among those that learned so far, or -1
            values[slots >= 0] = one.learned[slots[slots >= 0]].to(dtype)
            return values
        full = one.tensor.to(dtype, copy=True)  # entries: once, at a change of plan
        one.layout.put(full, one.learned)
        return layout.take(full)


def _make_classes(found: Sequence[Found], wishes: Sequence[Wish]) -> None:
    """Make the classes that the plan needs, while a class that cannot have a subclass can still be refused."""
    names: dict[nn.Module, list[str]] = {}
    for one, wish in zip(found, wishes, strict=True):
        for module, name in one.owners:
            if isinstance(wish.layout, Layout) or one.mapped:
                names.setdefault(module, []).append(name)
    for module, partial_names in names.items():
        partial_class(plain_class(module), tuple(sorted(partial_names)))


def _join(one: Found) -> None:
    """Write the learned part into the frozen one and forget the parts."""
    if one.layout is None or one.learned is None:
        return
    if not one.mapped:
        one.layout.put(writable(one.tensor), one.learned.detach())
    one.tensor.grad = one.learned.grad = None
    retire(one.tensor, one.learned, one.layout.places)
    for module, name in one.owners:
        if cast(State, state_of(module)).layouts.pop(name, None) is not None:
            del module._parameters[learned_name(name)]
    one.layout = one.learned = None


def _split(model: nn.Module, one: Found, layout: Layout, values: Tensor) -> None:
    """Give every owner of the tensor the same two parts."""
    learned = nn.Parameter(values)
    if not (one.mapped or values.is_meta or values.isfinite().all()):  # NaN as a marker: in a product, 0 * NaN is NaN
        layout.put(writable(one.tensor), torch.zeros_like(values))
    watch(one.tensor, learned, [module for module, _ in one.owners], model)
    for module, name in one.owners:
        module._parameters[learned_name(name)] = learned
        cast(State, state_of(module)).layouts[name] = layout


def _moves_though_frozen(module: nn.Module) -> bool:
    """Whether `module` keeps running statistics of batches although none of its parameters learns."""
    keeps = isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None
    return keeps and not any(parameter.requires_grad for parameter in module.parameters())


def _set_classes(model: nn.Module, held: set[nn.Module]) -> None:
    for module in model.modules():
        state = state_of(module)
        if state is None:
            continue
        was_held, state.held = state.held, module in held
        names = tuple(sorted({*state.layouts, *state.mapped}))
        cls: Any = partial_class(plain_class(module), names) if names or state.held else plain_class(module)
        if type(module) is not cls:
            module.__class__ = cls
        if state.held and not was_held:
            module.train(module.training)
        elif was_held and not state.held:
            module.train(state.training)
        if isinstance(module, nn.RNNBase) and not names:
            module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]


def _line(one: Found, layout: Layout | bool) -> Line:
    tensor = one.tensor
    learns, count = ("everything" if layout else "nothing"), None
    learned = tensor.numel() if layout is True else 0
    if isinstance(layout, Layout):
        learns, count = layout.kind, len(layout)
        learned = count * (tensor[0].numel() if layout.slots is not None else 1)
    note = "" if not one.mapped else "mapped"
    note = note if tensor.is_floating_point() or tensor.is_complex() else f"{tensor.dtype} cannot learn"
    return Line(one.names[0], tuple(one.names[1:]), tuple(tensor.shape), learns, count, learned, note)
