"""Check what callers pass: a model, a loss function and its loss, optimizers. Each error is one line."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from frostline.errors import ProbeError
from frostline.partial.arguments import check_model as check_model
from frostline.printing import listed


def check_loss_fn(loss_fn: object) -> None:
    """Raise TypeError unless `loss_fn` can be called, with no arguments."""
    if not callable(loss_fn):
        raise TypeError(
            f"loss_fn: expected a function, got {type(loss_fn).__name__}. Pass one that runs the pass: `lambda: ...`."
        )
    if needed := _needed_arguments(loss_fn):
        raise TypeError(
            f"loss_fn: it is called without arguments, but this {type(loss_fn).__name__} needs {listed(needed, 4)}. "
            "Pass one that runs the pass: `lambda: F.cross_entropy(model(x), y)`."
        )


def _needed_arguments(function: Callable[..., object]) -> list[str]:
    called = function.forward if isinstance(function, nn.Module) else function
    try:  # what a decorator has wrapped may get its arguments from it
        parameters = inspect.signature(called, follow_wrapped=False).parameters
    except (TypeError, ValueError):  # compiled code that tells nothing
        return []
    may_be_left_out = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind not in may_be_left_out
    ]


def check_loss(loss: Any) -> Tensor:
    """Return `loss`; raise ProbeError unless it is a tensor of one element, of any shape, dtype or graph."""
    if not isinstance(loss, Tensor):
        kind = "None" if loss is None else type(loss).__name__
        raise ProbeError(f"loss_fn: it returned {kind}, but the loss must be a tensor. {_loss_fix(loss)}")
    if loss.numel() != 1:
        raise ProbeError(
            f"loss_fn: the loss has shape {tuple(loss.shape)}, but it must be one number. Return its mean."
        )
    return loss


def _loss_fix(returned: Any) -> str:
    """Return what `loss_fn` should return instead of `returned`."""
    if isinstance(returned, Mapping):
        losses = [key for key in returned if "loss" in str(key)]
        return f"Return one of its values, such as result[{(losses or [*returned] or ['loss'])[0]!r}]."
    if hasattr(returned, "loss"):
        return "Return its `.loss`."
    if isinstance(returned, tuple | list):
        return "Return the loss alone."
    if returned is None:
        return "End it with `return loss`."
    return "Return the tensor itself, without item(), float() or numpy()."


@contextlib.contextmanager
def own_backward() -> Iterator[None]:
    """Run the backward pass of a loss; if `loss_fn` has run one already, say that it must not."""
    try:
        yield
    except RuntimeError as error:
        if "backward through the graph a second time" not in str(error):
            raise
        raise ProbeError(
            "loss_fn: it called backward() itself, or its loss is of an earlier pass. Let it run the forward pass and "
            "return the loss, without backward() and step()."
        ) from error


def check_optimizers(optimizer: Any) -> list[Any]:
    """Return `optimizer`, or the optimizers of a list, as a list; TypeError without `param_groups` or `step`."""
    optimizers = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    for each in optimizers:
        if not (hasattr(each, "param_groups") and hasattr(each, "step")):
            fix = "Pass the optimizer(s)."
            if hasattr(getattr(each, "optimizer", None), "param_groups"):
                fix = "Pass the one that it drives: its `.optimizer`."
            raise TypeError(f"optimizer: {type(each).__name__} has no `param_groups` and `step`. {fix}")
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
