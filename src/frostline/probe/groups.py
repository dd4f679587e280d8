"""What the optimizers hold: which tensors, how often, at what learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from frostline.partial.sharded import is_sharded
from frostline.probe.arguments import optimizers_in


class Groups:
    """The parameter groups of no optimizer, one, or several.

    Args:
        optimizer: None, an object with `param_groups` and `step`, or a list of them.

    Attributes:
        optimizers: All of them.
        tensors: What they hold, each once.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizers = [] if optimizer is None else optimizers_in(optimizer)
        self.tensors: list[Tensor] = []
        self._rates: dict[int, list[float]] = {}
        for one in self.optimizers:
            for group in one.param_groups:
                rate = group.get("lr")
                for tensor in group["params"]:
                    if id(tensor) not in self._rates:
                        self.tensors.append(tensor)
                    # An optimizer that finds its own rate says None; that is not 0.
                    self._rates.setdefault(id(tensor), []).append(1.0 if rate is None else float(rate))

    def count(self, tensor: Tensor) -> int | None:
        """How many times `tensor` is listed; None without an optimizer."""
        return len(self.rates(tensor)) if self.optimizers else None

    def rates(self, tensor: Tensor) -> list[float]:
        """The learning rate of each listing of `tensor`."""
        return self._rates.get(id(tensor), [])

    def remarks(self, model: nn.Module, tensors: Sequence[Tensor], outside: Sequence[Tensor]) -> list[str]:
        """What does not fit: the model's `tensors`, the optimizers, and what else the loss reaches, `outside`."""
        known = {id(tensor) for tensor in tensors}
        foreign = [tensor for tensor in self.tensors if id(tensor) not in known]
        sharded = any(is_sharded(tensor) for tensor in tensors)  # the loss then reaches the gathered ones
        attributes = {id(value) for module in model.modules() for value in vars(module).values()}
        free = [leaf for leaf in outside if isinstance(leaf, nn.Parameter) or id(leaf) in attributes]
        lines = [_SHARDED] if sharded else []
        if foreign:
            lines.append(
                f"The optimizer holds {_count(foreign, 'tensor')}, not in the model. "
                "Make it after the model is copied, changed or planned."
            )
        if free and not sharded:
            word = "Parameter" if all(isinstance(leaf, nn.Parameter) for leaf in free) else "tensor"
            lines.append(
                f"The loss also reaches {_count(free, word)}, not among the model's parameters. "
                "Layers in a plain list need nn.ModuleList, tensors nn.Parameter."
            )
        return lines


_SHARDED = "The model is sharded (FSDP2): what is cut shows as unused, without its line."


def _count(tensors: Sequence[Tensor], word: str) -> str:
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors[:3]) + (", ..." if len(tensors) > 3 else "")
    return f"{len(tensors)} {word}{'s' if len(tensors) > 1 else ''} of shape {shapes}"
