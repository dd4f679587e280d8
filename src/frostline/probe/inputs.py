"""Check what callers pass: a model, a loss function and its loss, optimizers. Each error is one line."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from frostline.errors import ProbeError


def check_model(model: object) -> None:
    """Raise TypeError unless `model` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}.")


def check_loss_fn(loss_fn: object) -> None:
    """Raise TypeError unless `loss_fn` can be called."""
    if not callable(loss_fn):
        raise TypeError(
            f"loss_fn: expected a function, got {type(loss_fn).__name__}. Pass one that runs the pass: `lambda: ...`."
        )


def check_loss(loss: Any) -> Tensor:
    """Return `loss`; raise ProbeError unless it is a tensor of one element, of any shape, dtype or graph."""
    if not isinstance(loss, Tensor):
        hint = " Return its `.loss`." if hasattr(loss, "loss") else ""
        raise ProbeError(f"loss_fn: it returned {type(loss).__name__}, but the loss must be a tensor.{hint}")
    if loss.numel() != 1:
        raise ProbeError(
            f"loss_fn: the loss has shape {tuple(loss.shape)}, but it must be one number. Return its mean."
        )
    return loss


def check_optimizers(optimizer: Any) -> list[Any]:
    """Return `optimizer`, or the optimizers of a list, as a list; TypeError without `param_groups` or `step`."""
    optimizers = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    for each in optimizers:
        if not (hasattr(each, "param_groups") and hasattr(each, "step")):
            raise TypeError(
                f"optimizer: {type(each).__name__} has no `param_groups` and `step`. Pass the optimizer(s)."
            )
    return optimizers


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the user's own module inside one that is compiled or run by DistributedDataParallel."""
    while True:
        if isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model
