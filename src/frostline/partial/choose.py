"""Names and patterns over a model's tensors -> what learns, carried out on the modules; and back again.

Three steps: find every tensor with all its names (tied names are one tensor), choose a selection for each, then carry
all of it out. Everything that can be wrong is found before the first tensor changes.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn

from frostline.errors import FrostlineError, PartialTensorError, PatternError, SelectionError
from frostline.partial.layout import Layout
from frostline.partial.module import (
    State,
    is_sharded,
    learned_name,
    partial_class,
    parts,
    plain_class,
    state_of,
)
from frostline.partial.plan import Line, Plan
from frostline.partial.selections import Selection, nothing
from frostline.partial.watch import retire, watch


@dataclass
class Found:
    """One tensor of a model: its names, the modules that own it, and its parts if it is partial now."""

    tensor: nn.Parameter
    names: list[str] = field(default_factory=list)
    owners: list[tuple[nn.Module, str]] = field(default_factory=list)
    learned: nn.Parameter | None = None
    layout: Layout | None = None


def train_only(model: nn.Module, selections: Mapping[str, Selection], *, hold_statistics: bool = False) -> Plan:
    """Let only the named tensors, rows or entries of `model` learn; everything else keeps every bit.

    Args:
        model: Any module. It is changed in place and stays the same object, with the same classes (by isinstance),
            state-dict keys and values. It comes before DistributedDataParallel and `fully_shard`.
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
    _refuse_wrapped(model)
    found = find_tensors(model)
    chosen = {id(one.tensor): _choose(one, selections) for one in found}
    _refuse_unmatched(selections, found)
    layouts = {id(one.tensor): _resolve(one, *chosen[id(one.tensor)]) for one in found}
    for one in found:
        if isinstance(layouts[id(one.tensor)], Layout):
            _refuse_unseen_uses(model, one, found)
    values = {
        id(one.tensor): _learned_values(one, layout, chosen[id(one.tensor)][0])
        for one in found
        if isinstance(layout := layouts[id(one.tensor)], Layout)
    }
    for module in model.modules():
        _remember(module)
    for one in found:
        _join(one)
        layout = layouts[id(one.tensor)]
        one.tensor.grad = None
        one.tensor.requires_grad_(layout is True)
        if isinstance(layout, Layout):
            _split(one, layout, values[id(one.tensor)])
    norms = {name: module for name, module in model.named_modules() if _moves_though_frozen(module)}
    _set_classes(model, held=set(norms.values()) if hold_statistics else set())
    lines = [_line(one, layouts[id(one.tensor)]) for one in found]
    return Plan(model, lines, () if hold_statistics else tuple(norms), tuple(norms) if hold_statistics else ())


def merge(model: nn.Module) -> None:
    """Make `model` a plain model again: its classes, its keys, `requires_grad` as before, learned values in place.

    Args:
        model: A module that `train_only` changed, or any ancestor of one. A plain model is left as it is.

    Raises:
        PartialTensorError: The model is sharded (FSDP2), where the parts cannot be joined in place.

    Cost: one write of what learned; no copy of a table. A learned part in float32 is rounded to the table's dtype.

    Example:
        >>> import frostline as fl
        >>> embedding = nn.Embedding(5, 2)
        >>> plan = fl.train_only(embedding, {"weight": fl.rows([1])})
        >>> fl.merge(embedding)
        >>> type(embedding) is nn.Embedding, embedding.weight.requires_grad
        (True, True)
    """
    _refuse_sharded(model)
    for module in model.modules():
        _remember(module)
    for one in find_tensors(model):
        _join(one)
        one.tensor.requires_grad_(any(cast(State, state_of(m)).requires_grad[name] for m, name in one.owners))
    _set_classes(model, held=set())
    for module in model.modules():
        module.__dict__.pop("_frostline", None)


def find_tensors(model: nn.Module) -> list[Found]:
    """Every parameter of `model`, tied names together, learned parts with the tensor they belong to."""
    found: dict[int, Found] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        state = state_of(module)
        layouts = {} if state is None else state.layouts
        hidden = {learned_name(name) for name in layouts}
        for name, parameter in module._parameters.items():
            if parameter is None or name in hidden:
                continue
            one = found.setdefault(id(parameter), Found(parameter))
            one.names.append(f"{prefix}.{name}" if prefix else name)
            if (module, name) not in one.owners:
                one.owners.append((module, name))
            if name in layouts:
                one.learned, one.layout = parts(module, name)[1], layouts[name]
    return list(found.values())


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
    padding = [index for module, _ in one.owners if isinstance(index := getattr(module, "padding_idx", None), int)]
    try:
        layout = selection.places(one.tensor, padding[0] if padding else None)
    except FrostlineError as error:
        raise type(error)(f"{name}: {error}") from None
    if isinstance(layout, Layout):
        for module, own in one.owners:
            if getattr(module, "max_norm", None) is not None:
                raise SelectionError(
                    f"{name}: max_norm={module.max_norm} rewrites frozen rows in the forward. Set max_norm=None."
                )
            taken = learned_name(own)
            if hasattr(module, taken) and one.layout is None:
                raise SelectionError(f"{name}: its module already has an attribute {taken!r}. Rename that one.")
    return layout


def _refuse_wrapped(model: nn.Module) -> None:
    _refuse_sharded(model)
    for module in model.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise PartialTensorError(
                "model: DistributedDataParallel knows only the parameters it was built with. Call train_only first."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise PartialTensorError("model: a ScriptModule cannot be partly frozen. Use the Python module.")


def _refuse_sharded(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if is_sharded(parameter):
            raise PartialTensorError(f"model: {name} is sharded. Call train_only and merge on the unsharded model.")


def _refuse_unseen_uses(model: nn.Module, one: Found, found: list[Found]) -> None:
    """Refuse a tensor that is reached by another way than its name: that use would never see what learns."""
    start, end = _span(one.tensor)
    for other in found:
        other_start, other_end = _span(other.tensor)
        if other is not one and start < other_end and other_start < end:
            raise PartialTensorError(
                f"{one.names[0]} shares its memory with {other.names[0]}, which is another Parameter. "
                "Tie them by assigning the same Parameter to both."
            )
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_frostline") or (isinstance(module, nn.RNNBase) and attribute[0] == "_"):
                continue
            held = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            if any(item is one.tensor for item in held):
                raise PartialTensorError(
                    f"{one.names[0]}: {path or 'the model'}.{attribute} keeps this Parameter outside its name, so its "
                    "forward would never see what learns. Make that attribute a property that reads the Parameter."
                )


def _span(tensor: Tensor) -> tuple[int, int]:
    """First and last address of a tensor's memory; (0, 0) where it has none, as on the meta device."""
    if tensor.device.type == "meta" or tensor.numel() == 0 or is_sharded(tensor):
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


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
        if one.layout is None or one.learned is None:
            return layout.take(one.tensor).to(dtype)
        full = one.tensor.to(dtype, copy=True)  # once, at a change of plan: keeps float32 digits over a half table
        one.layout.put(full, one.learned)
        return layout.take(full)


def _join(one: Found) -> None:
    """Write the learned part into the frozen one and forget the parts."""
    if one.layout is None or one.learned is None:
        return
    one.layout.put(one.tensor.data, one.learned.detach())
    one.tensor.grad = one.learned.grad = None
    retire(one.tensor, one.learned)
    for module, name in one.owners:
        if cast(State, state_of(module)).layouts.pop(name, None) is not None:
            del module._parameters[learned_name(name)]
    one.layout = one.learned = None


def _split(one: Found, layout: Layout, values: Tensor) -> None:
    """Give every owner of the tensor the same two parts."""
    learned = nn.Parameter(values)
    watch(one.tensor, learned)
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
        names = tuple(state.layouts)
        cls: Any = partial_class(plain_class(module), names) if names or state.held else plain_class(module)
        if type(module) is not cls:
            module.__class__ = cls
        if was_held or state.held:
            module.train(model.training)
        if isinstance(module, nn.RNNBase) and not names:
            module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]


def _line(one: Found, layout: Layout | bool) -> Line:
    tensor = one.tensor
    learns, count = ("everything" if layout else "nothing"), None
    learned = tensor.numel() if layout is True else 0
    if isinstance(layout, Layout):
        learns, count = layout.kind, len(layout)
        learned = count * (tensor[0].numel() if layout.slots is not None else 1)
    note = "" if tensor.is_floating_point() or tensor.is_complex() else f"{tensor.dtype} cannot learn"
    return Line(one.names[0], tuple(one.names[1:]), tuple(tensor.shape), learns, count, learned, note)
