"""What a function can reach before it runs: the modules, random generators and leaf tensors that its pass may touch.

The idea: walk from the function as Python would, without running anything: its closure, its defaults, the globals that
its code names, the object it is a method of, and on through containers and attributes. Code of torch, numpy and the
standard library is not entered. What is reached by other ways (C++, `__slots__`, containers of more than 1,000 things)
is not found.
"""

from __future__ import annotations

import random
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_MOST_ITEMS = 1_000  # of a container; larger ones hold data
_MOST_OBJECTS = 20_000
_NOT_ENTERED = {"torch", "numpy", *sys.stdlib_module_names} - {"__main__"}
GENERATORS = (torch.Generator, np.random.Generator, np.random.BitGenerator, np.random.RandomState, random.Random)


@dataclass
class Reached:
    """What was found, each object once.

    Attributes:
        modules: Modules, without their submodules unless those were reached too.
        generators: torch.Generator, numpy's Generator, BitGenerator and RandomState, Python's Random.
        leaves: Leaf tensors that require a gradient, other than those of the modules.
        compiled: Whether something that `torch.compile` made was met.
    """

    modules: list[nn.Module] = field(default_factory=list)
    generators: list[Any] = field(default_factory=list)
    leaves: list[Tensor] = field(default_factory=list)
    compiled: bool = False


def reach(*roots: object) -> Reached:
    """Walk from `roots` (functions, modules, anything); costs microseconds for each object met, at most 20,000."""
    found = Reached()
    seen: dict[int, object] = {}  # id -> the object itself, so that no id is used twice
    waiting = deque(roots)
    while waiting and len(seen) < _MOST_OBJECTS:
        one = waiting.popleft()
        if id(one) in seen or isinstance(one, (str, bytes, int, float, type, np.ndarray, types.ModuleType)):
            continue
        seen[id(one)] = one
        found.compiled |= _is_compiled(one)
        if isinstance(one, GENERATORS):
            found.generators.append(one)
        elif isinstance(one, Tensor):
            if one.requires_grad and one.is_leaf:
                found.leaves.append(one)
        else:
            if isinstance(one, nn.Module):
                found.modules.append(one)
            waiting.extend(_next(one))
    return found


def _is_compiled(one: object) -> bool:
    """Whether `one` is a compiled function, or a module with a compiled one in it."""
    if isinstance(one, nn.Module):
        return any(
            module.__dict__.get("_compiled_call_impl") is not None or "_orig_mod" in module._modules
            for module in one.modules()
        )
    return isinstance(one, types.FunctionType) and hasattr(one, "_torchdynamo_orig_callable")


def _next(one: object) -> Iterator[object]:
    """What can be reached from `one` in one step."""
    if isinstance(one, types.FunctionType):
        if (one.__module__ or "").partition(".")[0] not in _NOT_ENTERED or hasattr(one, "_torchdynamo_orig_callable"):
            yield from _of_function(one)
    elif isinstance(one, types.MethodType):
        yield from (one.__func__, one.__self__)
    elif isinstance(one, partial):
        yield from (one.func, *one.args, *one.keywords.values())
    elif isinstance(one, Mapping):
        if len(one) <= _MOST_ITEMS:
            yield from one.values()
    elif isinstance(one, (list, tuple, set, frozenset, deque)):
        if len(one) <= _MOST_ITEMS:
            yield from one
    elif hasattr(one, "__dict__"):
        yield from vars(one).values()
        for name in ("forward", "__call__", "__iter__", "__next__"):
            yield getattr(type(one), name, None)


def _of_function(function: types.FunctionType) -> Iterator[object]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from (function.__defaults__, function.__kwdefaults__, vars(function))
    names = set(_names(function.__code__))
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        if isinstance(value, types.ModuleType):
            if value.__name__.partition(".")[0] not in _NOT_ENTERED:
                yield from (vars(value)[inner] for inner in names & vars(value).keys())
        else:
            yield value


def _names(code: types.CodeType) -> Iterator[str]:
    """Every name that the code looks up, inner functions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
