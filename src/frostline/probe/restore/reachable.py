"""What a function can reach before it runs: the modules, random generators and leaf tensors that its pass may touch.

The idea: walk from the function as Python would, without running anything: its closure, its defaults, the globals that
its code names, the object it is a method of, and on through containers and attributes. The globals of installed
packages are left out. What is reached by other ways (C++, `__slots__`, containers of more than 1,000 things) is not
found.
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

MOST_ITEMS = 1_000  # of a container; larger ones hold data
_MOST_OBJECTS = 20_000
_INSTALLED = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")})
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, np.ndarray, types.ModuleType, torch.dtype)
_WALKED = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}  # of a module, one by one
_METHODS = ("forward", "__call__", "__iter__", "__next__")  # run when an object is used
GENERATORS = (torch.Generator, np.random.Generator, np.random.BitGenerator, np.random.RandomState, random.Random)


@dataclass
class Reached:
    """What was found, each object once.

    Attributes:
        modules: Modules, without those inside them.
        generators: torch.Generator, numpy's Generator, BitGenerator and RandomState, Python's Random.
        leaves: Leaf tensors that require a gradient, other than parameters of the modules.
        optimizers: Objects with `param_groups` and `step`.
        compiled: Whether something that `torch.compile` made was met.
    """

    modules: list[nn.Module] = field(default_factory=list)
    generators: list[Any] = field(default_factory=list)
    leaves: list[Tensor] = field(default_factory=list)
    optimizers: list[Any] = field(default_factory=list)
    compiled: bool = False


def reach(*roots: object) -> Reached:
    """Walk from `roots` (functions, modules, anything); about a microsecond for each object met, at most 20,000."""
    found = Reached()
    seen: dict[int, object] = {}  # id -> the object itself, so that no id is used twice
    waiting = deque(roots)
    while waiting and len(seen) < _MOST_OBJECTS:
        one = waiting.popleft()
        if isinstance(one, _PLAIN) or id(one) in seen:
            continue
        seen[id(one)] = one
        if isinstance(one, Tensor):
            if one.requires_grad and one.is_leaf:
                found.leaves.append(one)
        elif isinstance(one, nn.Module):
            found.modules.append(one)
            for module in one.modules():
                seen[id(module)] = module
                found.compiled |= "_orig_mod" in module._modules or module._compiled_call_impl is not None
                waiting.extend(_of_module(module))
        elif isinstance(one, GENERATORS):
            found.generators.append(one)
        else:
            if hasattr(type(one), "step") and "param_groups" in getattr(one, "__dict__", ()):
                found.optimizers.append(one)
            found.compiled |= isinstance(one, types.FunctionType) and hasattr(one, "_torchdynamo_orig_callable")
            waiting.extend(_next(one))
    return found


def optimizers_in_backward(tensors: Iterable[Tensor]) -> list[Any]:
    """The optimizers that accumulation hooks of `tensors` may step."""
    hooks = [(getattr(tensor, "_post_accumulate_grad_hooks", None) or {}).values() for tensor in tensors]
    return reach(*itertools.chain.from_iterable(hooks)).optimizers


def _of_module(module: nn.Module) -> Iterator[object]:
    """What a module holds that is neither a parameter, a buffer nor a module inside it."""
    for name, value in module.__dict__.items():
        if name not in _WALKED and not isinstance(value, _PLAIN) and not (isinstance(value, dict) and not value):
            yield value
    yield type(module).forward


def _next(one: object) -> Iterator[object]:
    """What can be reached from `one` in one step."""
    if isinstance(one, types.FunctionType):
        yield from _of_function(one)
    elif isinstance(one, types.MethodType):
        yield from (one.__func__, one.__self__)
    elif isinstance(one, partial):
        yield from (one.func, *one.args, *one.keywords.values())
    elif isinstance(one, dict):
        if len(one) <= MOST_ITEMS:
            yield from one.values()
    elif isinstance(one, (list, tuple, set, frozenset, deque)):
        if len(one) <= MOST_ITEMS:
            yield from one
    else:
        try:
            attributes = object.__getattribute__(one, "__dict__")  # past any `__getattr__` of the object's own
        except AttributeError:
            return
        yield from attributes.values()
        for name in _METHODS:
            yield getattr(type(one), name, None)


def _of_function(function: types.FunctionType) -> Iterator[object]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from (function.__defaults__, function.__kwdefaults__, vars(function))
    if function.__code__.co_filename.startswith(_INSTALLED):
        return
    names = set(_names(function.__code__))
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        if isinstance(value, types.ModuleType):
            yield from (vars(value)[inner] for inner in names & vars(value).keys())
        else:
            yield value


def _names(code: types.CodeType) -> Iterator[str]:
    """Every name that the code looks up, inner functions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
