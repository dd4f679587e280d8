"""Every tensor of a model once, with all its names and the modules that own it.

Tied tensors are one tensor; the learned part belongs to the tensor it is a part of; a table that stays in its file is
found although it is no Parameter.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from frostline.partial.indices import Layout
from frostline.partial.module import learned_name, parts, state_of


@dataclass
class Found:
    """One tensor of a model: its names, the modules that own it, and its parts if it is partial now."""

    tensor: Tensor
    mapped: bool = False
    names: list[str] = field(default_factory=list)
    owners: list[tuple[nn.Module, str]] = field(default_factory=list)
    learned: nn.Parameter | None = None
    layout: Layout | None = None


def find_tensors(model: nn.Module) -> list[Found]:
    """Every parameter of `model`, tied names together, learned parts with the tensor they belong to."""
    found: dict[int, Found] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        state = state_of(module)
        layouts = {} if state is None else state.layouts
        hidden = {learned_name(name) for name in layouts}
        mapped = {} if state is None else {name: table.tensor for name, table in state.mapped.items()}
        for name, parameter in [*module._parameters.items(), *mapped.items()]:
            if parameter is None or name in hidden:
                continue
            one = found.setdefault(id(parameter), Found(parameter, name in mapped))
            one.names.append(f"{prefix}.{name}" if prefix else name)
            if (module, name) not in one.owners:
                one.owners.append((module, name))
            if name in layouts:
                one.learned, one.layout = parts(module, name)[1], layouts[name]
    return list(found.values())
