"""What the looks are given: a model, a loss, optimizers. What cannot be meant is refused in one line."""

from __future__ import annotations

from typing import Any

from torch import nn


def check_model(model: object) -> None:
    """Raise TypeError if `model` is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: {type(model).__name__}, but it must be an nn.Module.")


def check_loss_fn(loss_fn: object) -> None:
    """Raise TypeError if `loss_fn` cannot be called."""
    if not callable(loss_fn):
        raise TypeError(
            f"loss_fn: {type(loss_fn).__name__} is no function. Pass one that runs the pass: `lambda: ...`."
        )


def optimizers_in(optimizer: Any) -> list[Any]:
    """The optimizers in one, or in a list of them; TypeError if one has no `param_groups` or no `step`."""
    optimizers = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    for one in optimizers:
        if not (hasattr(one, "param_groups") and hasattr(one, "step")):
            raise TypeError(f"optimizer: {type(one).__name__} has no `param_groups` and `step`. Pass the optimizer(s).")
    return optimizers
