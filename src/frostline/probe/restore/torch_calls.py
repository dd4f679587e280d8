"""What a call of a torch function reads and writes, decided by its name.

Names are those of the functions, such as `detach`; reading an attribute is `.data`, setting it `.data=`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LIKE = {f"{name}_like" for name in ("empty", "zeros", "ones", "full", "rand", "randn", "randint")}
_LIKE |= {"new_empty", "new_zeros", "new_ones", "new_full", "new_tensor", "new", "new_empty_strided"}
_SHAPE_OF_SECOND = {"expand_as", "view_as", "reshape_as", "type_as", "to"}

NO_VALUE = {".grad", "._base", ".grad_fn", ".is_leaf", ".requires_grad", "requires_grad_", "retain_grad"}
CUTS = {"detach", "detach_", ".data"}  # what cuts a gradient where `requires_grad` does not say whether one flows

_names: dict[Any, str] = {}


def name_of(func: Any) -> str:
    """Return the name of a torch function."""
    name = _names.get(func)
    if name is None:
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__"):
            attribute = getattr(getattr(func, "__self__", None), "__name__", "")
            name = f".{attribute}" + ("=" if name == "__set__" else "")
        _names[func] = name
    return name


def inputs_of(name: str, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the arguments whose values the result depends on: not the one whose shape `zeros_like` takes."""
    reads = args[1:] if name in _LIKE else args[:1] if name in _SHAPE_OF_SECOND else args
    return tensors_in((reads, kwargs) if kwargs else reads)


def targets_of(name: str, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the tensors that a call writes into."""
    in_place = name.endswith("_") and not name.endswith("__")
    in_place |= name.startswith("__i") and name not in ("__index__", "__invert__", "__int__")
    in_place |= name in ("__setitem__", ".data=") or kwargs.get("inplace") is True
    if name in ("embedding", "embedding_bag") and kwargs.get("max_norm") is not None:
        return tensors_in(args[1:2])  # the rows that are looked up are rescaled in the table
    first = args[0] if args else kwargs.get("tensor")  # torch.nn.init names it
    return tensors_in([kwargs.get("out"), first if in_place else None])


def tensors_in(value: Any) -> list[Tensor]:
    """Return every tensor in a nest of tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    found: list[Tensor] = []
    if isinstance(value, (list, tuple)):
        for item in value:  # runs for every torch call, so a tensor is taken without another call
            if isinstance(item, Tensor):
                found.append(item)
            elif isinstance(item, (list, tuple, dict)):
                found += tensors_in(item)
    elif isinstance(value, dict):
        found += tensors_in(list(value.values()))
    return found


def has_no_backward(function: Any) -> bool:
    """Return whether a class derived from autograd.Function defines neither `backward` nor `vjp`."""
    plain: Any = torch.autograd.Function
    return function.backward is plain.backward and function.vjp is plain.vjp
