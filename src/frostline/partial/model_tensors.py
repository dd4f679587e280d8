"""Every tensor of a model once, with all its names and the modules that own it.

Tied tensors are one tensor; the two parts of a partial tensor are one tensor; and a table in a mapped file is included,
although it is not a Parameter.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from frostline.partial.indices import LearnedIndices
from frostline.partial.module import learned_name, parts, state_of


@dataclass
class ModelTensor:
    """One tensor of a model.

    Attributes:
        tensor: The Parameter, or the frozen part if it is partial, or the tensor of a mapped file.
        mapped: Whether it is the tensor of a mapped file.
        names: All its names in the model, the first one first.
        owners: The modules that have it, each with its name there.
        learned: Its learned part, if it is partial now.
        indices: Which of its elements learn, if it is partial now.
    """

    tensor: Tensor
    mapped: bool = False
    names: list[str] = field(default_factory=list)
    owners: list[tuple[nn.Module, str]] = field(default_factory=list)
    learned: nn.Parameter | None = None
    indices: LearnedIndices | None = None

    @property
    def name(self) -> str:
        """Its first name in the model."""
        return self.names[0]


def find_tensors(model: nn.Module) -> list[ModelTensor]:
    """Return every parameter of `model` and every mapped table, in the model's order."""
    found: dict[int, ModelTensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        state = state_of(module)
        partial = {} if state is None else state.partial
        hidden = {learned_name(name) for name in partial}
        mapped = {} if state is None else {name: table.tensor for name, table in state.mapped.items()}
        for name, parameter in [*module._parameters.items(), *mapped.items()]:
            if parameter is None or name in hidden:
                continue
            model_tensor = found.setdefault(id(parameter), ModelTensor(parameter, name in mapped))
            model_tensor.names.append(f"{prefix}.{name}" if prefix else name)
            if (module, name) not in model_tensor.owners:
                model_tensor.owners.append((module, name))
            if name in partial:
                model_tensor.learned, model_tensor.indices = parts(module, name)[1], partial[name].indices
    return list(found.values())
