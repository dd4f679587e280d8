"""Check what callers pass as a model and as selections: each error is one line that says what to type instead.

These are the mistakes that people make in their first minutes: parameters where names belong, ids or a mask where a
selection belongs, arguments in the wrong order.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from torch import Tensor, nn

from frostline.errors import PatternError, SelectionError
from frostline.partial.model_tensors import ModelTensor
from frostline.partial.quantized import why_it_cannot_learn
from frostline.partial.selections import Selection, nothing
from frostline.printing import listed

_MOST = 3  # names that an error shows


def check_model(model: object) -> None:
    """Raise TypeError unless `model` is a module."""
    if isinstance(model, nn.Module):
        return
    fix = "Pass the model itself."
    if isinstance(model, Tensor):
        fix = "Pass the module that has this tensor, and choose the tensor by its name."
    elif hasattr(model, "param_groups"):
        fix = "Pass the model that it steps."
    elif isinstance(model, str):
        fix = "The model comes first: pass the module itself."
    raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}. {fix}")


def check_arguments(model: object, selections: object) -> None:
    """Raise TypeError unless `model` is a module, and `selections` maps names to selections."""
    if isinstance(selections, nn.Module) and not isinstance(model, nn.Module):
        raise TypeError(
            "model: the model comes first, then what learns. Write fl.train_only(model, {'name': fl.rows(ids)})."
        )
    check_model(model)
    names = _names(model)
    if not isinstance(selections, Mapping):
        given = _described(selections)
        raise TypeError(f"selections: expected a dict of names, got {given}. {_fix(selections, names)}")
    for key, selection in selections.items():
        if not isinstance(key, str):
            raise TypeError(f"selections: the keys are names, but one is {_described(key)}. {_fix([key], names)}")
        if not isinstance(selection, Selection):
            raise TypeError(f"{key}: expected a selection, got {_described(selection)}. {_selection_fix(selection)}")


def check_patterns(selections: Mapping[str, Selection], tensors: Sequence[ModelTensor]) -> None:
    """Raise unless each name or pattern matches a tensor, and one that can learn if it is to learn."""
    names = [name for tensor in tensors for name in tensor.names]
    for pattern, selection in selections.items():
        matched = [t for t in tensors if any(name == pattern or fnmatchcase(name, pattern) for name in t.names)]
        if not matched:
            near = difflib.get_close_matches(pattern, names, n=4, cutoff=0.3) or names[:4]
            raise PatternError(f"{pattern!r} matches no parameter. The nearest names are: {', '.join(near) or 'none'}.")
        lazy = any(isinstance(tensor.tensor, nn.UninitializedParameter) for tensor in matched)
        if selection is nothing or pattern in names or lazy:
            continue
        if all(why := [why_it_cannot_learn(tensor.tensor) for tensor in matched]):
            raise SelectionError(
                f"{pattern!r} matches only tensors that cannot learn: {matched[0].name}: {why[0]}. Leave it out."
            )


def _names(model: Any) -> dict[int, str]:
    """Return id of each parameter and module of `model` -> the name or pattern that chooses it."""
    modules = {id(module): f"{name}.*" if name else "*" for name, module in model.named_modules()}
    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    return modules | parameters


def _fix(given: object, names: Mapping[int, str]) -> str:
    """Return what to write instead of a collection of `given` parameters, modules or names."""
    each = list(_items(given))
    chosen = [item if isinstance(item, str) else names.get(id(item), "") for item in each]
    if not chosen or not all(chosen):
        return "Write {'name or pattern': fl.rows(ids), ...}; model.named_parameters() has the names."
    pairs = listed([f"{name!r}: fl.everything" for name in chosen], most=_MOST)
    return f"Write {{{pairs}}}."


def _items(given: object) -> Iterator[object]:
    if isinstance(given, Tensor | nn.Module | str):
        yield given
    elif isinstance(given, Sequence | set | frozenset):
        yield from given


def _selection_fix(given: object) -> str:
    """Return what to write instead of `given` where a selection belongs."""
    if isinstance(given, Tensor | np.ndarray):
        if str(given.dtype).endswith("bool"):
            return "Write fl.entries(mask), or fl.rows(mask) for a mask of one value a row."
        if "int" in str(given.dtype) and given.ndim == 1:
            return "Write fl.rows(ids)."
    elif isinstance(given, list | tuple | range | slice):
        return f"Write fl.rows({_short(given)})."
    elif given is None or isinstance(given, bool) or given in ("everything", "nothing"):
        return f"Write fl.{'everything' if given in (True, 'everything') else 'nothing'}."
    return "Pass fl.everything, fl.nothing, fl.rows(ids) or fl.entries(mask)."


def _described(value: object) -> str:
    """Return `value` in a few words, on one line."""
    if isinstance(value, Tensor | np.ndarray):
        kind = type(value).__name__
        return f"a {kind} of shape {tuple(value.shape)}"
    if isinstance(value, nn.Module):
        return f"the module {type(value).__name__}"
    if isinstance(value, list | tuple | set) and value:
        first = next(iter(value))
        return repr(value) if len(repr(value)) <= 60 else f"a {type(value).__name__} of {type(first).__name__}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    return _short(value)


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
