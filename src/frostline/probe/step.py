"""One real step of the optimizers, which `kept` (keep.py) takes back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any


def take_step(optimizers: Sequence[Any], evaluate: Callable[[], Any]) -> None:
    """Step every optimizer once: with `.grad` as it stands, or with the closure `evaluate` where one is asked for.

    Args:
        optimizers: Objects with `param_groups` and `step`: any `torch.optim.Optimizer`, wrappers around one.
        evaluate: Makes the loss and its gradients again, and returns the loss. It is called for optimizers whose
            `step` has a `closure` without default (LBFGS), or that refuse to step without one and say so (SAM).
    """
    for optimizer in optimizers:
        if needs_closure(optimizer):
            optimizer.step(evaluate)
            continue
        try:
            optimizer.step()
        except Exception as error:
            if "closure" not in f"{type(error).__name__} {error}".lower():
                raise
            optimizer.step(evaluate)


def needs_closure(optimizer: Any) -> bool:
    """Whether the `step` of `optimizer` cannot be called without a closure that makes the gradients."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
