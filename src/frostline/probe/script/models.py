"""Find the models of a running script, and the names that it has for them."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence

from torch import nn

from frostline.partial.model_tensors import find_tensors
from frostline.probe.inputs import unwrapped


def outermost_models() -> list[nn.Module]:
    """Return every module with parameters that is alive and inside no other one.

    Cost: a look at each object that Python's garbage collector knows, some 0.1 seconds for a million.
    """
    # By their types: asked for its `__class__`, somebody's lazy object may import a library, or warn.
    modules = [each for each in gc.get_objects() if issubclass(type(each), nn.Module) and "_modules" in vars(each)]
    inner = {id(child) for module in modules for child in module._modules.values() if child is not None}
    outermost = dict.fromkeys(unwrapped(module) for module in modules if id(module) not in inner)
    return _without_parts(module for module in outermost if next(module.parameters(), None) is not None)


def _without_parts(models: Iterable[nn.Module]) -> list[nn.Module]:
    """Leave out models all of whose tensors another one has too: a shallow copy, a wrapper that registers nothing."""
    kept: list[tuple[nn.Module, set[int]]] = []
    for model in models:
        tensors = {id(each.tensor) for each in find_tensors(model)}
        if not any(tensors <= others for _, others in kept):
            kept = [(other, others) for other, others in kept if not others <= tensors]
            kept.append((model, tensors))
    return [model for model, _ in kept]


def named(models: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Return the models by name: the variable of the script that holds it and its class, or the class alone."""
    import __main__

    variables = {id(unwrapped(value)): name for name, value in vars(__main__).items() if isinstance(value, nn.Module)}
    found: dict[str, nn.Module] = {}
    for model in models:
        kind = type(model).__name__
        first = name = f"{variables[id(model)]}: {kind}" if id(model) in variables else kind
        number = 1
        while name in found:
            number += 1
            name = f"{first} ({number})"
        found[name] = model
    return found
