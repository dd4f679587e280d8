"""What the optimizers hold: which tensors, how often, at what learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from frostline.partial.sharded import is_sharded
from frostline.printing import listed
from frostline.probe.inputs import check_optimizers

_SHARDED = "The model is sharded (FSDP2): a parameter that is cut is shown as unused, without the line."


class OptimizerGroups:
    """The parameter groups of no optimizer, one, or several.

    Args:
        optimizer: None, an object with `param_groups` and `step`, or a list of them.

    Attributes:
        optimizers: All of them.
        tensors: The tensors in their groups, each once.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizers = [] if optimizer is None else check_optimizers(optimizer)
        self.tensors: list[Tensor] = []
        self._learning_rates: dict[int, list[float]] = {}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                rate = group.get("lr")
                for tensor in group["params"]:
                    if id(tensor) not in self._learning_rates:
                        self.tensors.append(tensor)
                    # An optimizer that finds its own rate says None; that is not 0.
                    self._learning_rates.setdefault(id(tensor), []).append(1.0 if rate is None else float(rate))

    def listings(self, tensor: Tensor) -> int | None:
        """Return how many times `tensor` is listed; None without an optimizer."""
        return len(self.learning_rates(tensor)) if self.optimizers else None

    def learning_rates(self, tensor: Tensor) -> list[float]:
        """Return the learning rate of each listing of `tensor`."""
        return self._learning_rates.get(id(tensor), [])

    def remarks(self, model: nn.Module, tensors: Sequence[Tensor], other_leaves: Sequence[Tensor]) -> list[str]:
        """Return a line for each mismatch between the optimizers, the model and the loss.

        Args:
            model: The model.
            tensors: Its tensors, as optimizers should hold them.
            other_leaves: Leaves that the loss also reaches.
        """
        known = {id(tensor) for tensor in tensors}
        known |= {id(leaf) for leaf in other_leaves}  # a temperature that learns is in no module, and well
        foreign = [tensor for tensor in self.tensors if id(tensor) not in known]
        sharded = any(is_sharded(tensor) for tensor in tensors)  # the loss then reaches the gathered ones
        # An input may require a gradient; a tensor that a module holds without registering it is a fault.
        attributes = {id(value) for module in model.modules() for value in vars(module).values()}
        unregistered = [leaf for leaf in other_leaves if isinstance(leaf, nn.Parameter) or id(leaf) in attributes]
        lines = [_SHARDED] if sharded else []
        if foreign:
            lines.append(
                f"The optimizer holds {_counted(foreign, 'tensor')}, not in the model. "
                "Make it after the model is copied or changed, and after train_only."
            )
        if unregistered and not sharded:
            word = "Parameter" if all(isinstance(leaf, nn.Parameter) for leaf in unregistered) else "tensor"
            lines.append(
                f"The loss also reaches {_counted(unregistered, word)}, not among the model's parameters. "
                "Layers in a plain list need nn.ModuleList, tensors nn.Parameter."
            )
        return lines


def _counted(tensors: Sequence[Tensor], word: str) -> str:
    shapes = listed((str(tuple(tensor.shape)) for tensor in tensors), most=3)
    return f"{len(tensors)} {word}{'s' if len(tensors) > 1 else ''} of shape {shapes}"
