"""Find what a function can reach, before it runs: the modules, random generators and leaf tensors that it may use.

The idea: follow references from the function as Python would, without running anything: its closure, its defaults, the
globals that its code names, the object it is a method of, and on through containers and attributes. The globals of
installed packages are left out; attributes of classes are followed to containers and generators alone. What is reached
in other ways (C++, containers of more than 1,000 items) is not found.
"""

from __future__ import annotations

import itertools
import random
import sysconfig
import types
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from frostline.probe.restore.attributes import own_attributes, slots_of

MOST_ITEMS = 1_000  # of a container that is searched; larger ones hold data
_MOST_OBJECTS = 20_000
_INSTALLED = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")})
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, np.ndarray, types.ModuleType, torch.dtype)
_MODULE_TABLES = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}  # a snapshot adds these itself
_METHODS = ("forward", "__call__", "__iter__", "__next__")  # called when an object is used, though code names none
GENERATORS = (torch.Generator, np.random.Generator, np.random.BitGenerator, np.random.RandomState, random.Random)


@dataclass
class Reachable:
    """What was found, each object once.

    Attributes:
        modules: Modules, without their submodules.
        generators: torch.Generator, numpy's Generator, BitGenerator and RandomState, Python's Random.
        leaves: Leaf tensors that require a gradient, other than parameters of the modules.
        optimizers: Objects with `param_groups` and `step`.
        compiled: Whether any of it was made by `torch.compile`.
    """

    modules: list[nn.Module] = field(default_factory=list)
    generators: list[Any] = field(default_factory=list)
    leaves: list[Tensor] = field(default_factory=list)
    optimizers: list[Any] = field(default_factory=list)
    compiled: bool = False


def reachable(*roots: object) -> Reachable:
    """Return what `roots` (functions, modules, any objects) refer to, directly or not.

    Cost: about a microsecond for each object found; the search ends after 20,000.
    """
    found = Reachable()
    seen: dict[int, object] = {}  # id -> the object itself, which keeps its id from being used again
    waiting = deque(roots)
    while waiting and len(seen) < _MOST_OBJECTS:
        value = waiting.popleft()
        if isinstance(value, _PLAIN) or id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, Tensor):
            if value.requires_grad and value.is_leaf:
                found.leaves.append(value)
        elif isinstance(value, nn.Module):
            found.modules.append(value)
            for module in value.modules():
                seen[id(module)] = module
                found.compiled |= "_orig_mod" in module._modules or module._compiled_call_impl is not None
                waiting.extend(_in_module(module))
        elif isinstance(value, GENERATORS):
            found.generators.append(value)
        else:
            if hasattr(type(value), "step") and "param_groups" in getattr(value, "__dict__", ()):
                found.optimizers.append(value)
            found.compiled |= isinstance(value, types.FunctionType) and hasattr(value, "_torchdynamo_orig_callable")
            waiting.extend(_in_object(value))
    return found


def optimizers_in_backward(tensors: Iterable[Tensor]) -> list[Any]:
    """Return the optimizers that accumulation hooks of `tensors` may step."""
    hooks = [(getattr(tensor, "_post_accumulate_grad_hooks", None) or {}).values() for tensor in tensors]
    return reachable(*itertools.chain.from_iterable(hooks)).optimizers


def _in_module(module: nn.Module) -> Iterator[object]:
    """Yield what a module refers to, but for its parameters, buffers and submodules."""
    for name, value in module.__dict__.items():
        if name not in _MODULE_TABLES and not isinstance(value, _PLAIN) and not (isinstance(value, dict) and not value):
            yield value
    yield type(module).forward
    yield from _of_class(type(module))


def _in_object(value: object) -> Iterator[object]:
    """Yield what `value` refers to directly."""
    if isinstance(value, types.FunctionType):
        yield from _in_function(value)
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, dict):
        if len(value) <= MOST_ITEMS:
            yield from value.values()
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        if len(value) <= MOST_ITEMS:
            yield from value
    else:
        try:
            attributes = object.__getattribute__(value, "__dict__")  # runs neither `__getattr__` nor a property
        except AttributeError:
            attributes = {}
        slots = slots_of(value)
        if not attributes and not slots:
            return
        yield from (*attributes.values(), *slots.values())
        yield from _of_class(type(value))
        for name in _METHODS:
            yield getattr(type(value), name, None)


def _of_class(kind: type) -> Iterator[object]:
    """Yield the attributes of a class that calls may modify; methods are found by their names."""
    return (value for value in own_attributes(kind) if isinstance(value, (*GENERATORS, dict, list, tuple)))


def _in_function(function: types.FunctionType) -> Iterator[object]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # the variable is not assigned yet
            continue
    yield from (function.__defaults__, function.__kwdefaults__, vars(function))
    if function.__code__.co_filename.startswith(_INSTALLED):
        return
    # The names are those of globals and of attributes alike, so an attribute may find a global that has its name. An
    # object too many costs a copy; one too few would stay modified.
    names = set(_names(function.__code__))
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        if isinstance(value, types.ModuleType):  # `module.name`: `name` is among the names, too
            yield from (vars(value)[inner] for inner in names & vars(value).keys())
        else:
            yield value


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield every global and attribute name in the code, inner functions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
