"""The step that `explain` takes: which tensors it moves, and whether their gradients had a part in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.probe.explain.backward import GradientStatus
from frostline.probe.explain.optimizer_groups import OptimizerGroups
from frostline.probe.explain.vanishing import extent
from frostline.probe.explain.verdicts import STEP_RAISED
from frostline.probe.restore.bits import local, same
from frostline.probe.restore.restored import restored
from frostline.probe.restore.snapshot import Snapshot
from frostline.probe.trial import needs_closure, take_step

_INNER_STEPPED = "{} did not step (an accumulation, or a scaler that skips): the optimizer in it was stepped instead."
_OLDER = "All tensors with a gradient have an older `.grad`, which the step adds: an accumulation, or no zero_grad."


class Step:
    """Which tensors the step moved; to be asked before the snapshot is restored.

    Args:
        snapshot: The values before the step; None if none was taken.
        idle: Index of a tensor -> its values after a step with a gradient of zeros.
        raised: What the step raised; empty if it did not.
    """

    def __init__(self, snapshot: Snapshot | None, idle: Mapping[int, Tensor], raised: str = "") -> None:
        self._snapshot, self._idle, self._raised = snapshot, idle, raised

    @property
    def taken(self) -> bool:
        """Whether there was a step."""
        return self._snapshot is not None

    def moved(self, tensor: Tensor) -> bool | None:
        """Return whether any bit of `tensor` changed; None if that is not known."""
        if self._snapshot is None or tensor not in self._snapshot or not local(tensor).numel():
            return None
        return not same(self._snapshot[tensor], tensor)

    def is_without_effect(self, index: int, tensor: Tensor) -> bool:
        """Return whether a gradient of zeros is known to make a step of the same bits."""
        return self.taken and index in self._idle and same(self._idle[index], tensor)

    def learning_rates(self, tensor: Tensor, groups: OptimizerGroups) -> list[float]:
        """Return the learning rates that count for a tensor."""
        return groups.learning_rates(tensor)

    def why_not_taken(self, index: int) -> str:
        """Return why no step used the gradient of a tensor in a run that was watched; empty if one did."""
        return ""

    def why_gradient_was_lost(self, index: int) -> str:
        """Return what became of the gradient between backward and step; empty if it was still there."""
        return ""

    def is_overwritten(self, index: int) -> bool:
        """Return whether the step moved a tensor that has its old bits again."""
        return False

    def overwriting_line(self, index: int) -> str | None:
        """Return the line that wrote to a tensor after the step, as `file:line`."""
        return None

    def hints(self, index: int, tensor: Tensor) -> tuple[str, ...]:
        """Return further notes."""
        return (STEP_RAISED,) if self._raised else ()


def add_stale(stale: Mapping[Tensor, Tensor]) -> None:
    """Add the gradients that were there before the pass to those of the pass."""
    for tensor, older in stale.items():
        tensor.grad = older.clone() if tensor.grad is None else tensor.grad + older


def take_one_step(
    groups: OptimizerGroups, leaves: Sequence[Tensor], stale: Mapping[Tensor, Tensor], loss_fn: Callable[[], Tensor]
) -> list[str]:
    """Step the optimizers with the gradients in `.grad`; return remarks.

    A wrapper that does not step the optimizer inside it (accelerate's in the middle of an accumulation) would show
    nothing of the step that comes: then the one inside is stepped.
    """

    def evaluate() -> Tensor:
        for leaf in leaves:
            leaf.grad = stale[leaf].clone() if leaf in stale else None
        torch.clear_autocast_cache()
        loss = loss_fn()
        if loss.requires_grad:
            loss.backward()
        return loss.detach()

    remarks = []
    gradients = {leaf: leaf.grad for leaf in leaves if leaf.grad is not None}
    if gradients and all(leaf in stale and extent(stale[leaf]).largest for leaf in gradients):
        remarks.append(_OLDER)
    for optimizer in groups.optimizers:
        inner = getattr(optimizer, "optimizer", None)
        stepped: list[bool] = []
        with contextlib.ExitStack() as stack:
            if isinstance(inner, Optimizer):
                stack.callback(inner.register_step_post_hook(lambda *_, log=stepped: log.append(True)).remove)
            take_step([optimizer], evaluate)
        if isinstance(inner, Optimizer) and not stepped:
            take_step([inner], evaluate)
            remarks.append(_INNER_STEPPED.format(type(optimizer).__name__))
    return remarks


def without_effect(
    model: nn.Module,
    groups: OptimizerGroups,
    leaves: Sequence[Tensor],
    gradients: Sequence[GradientStatus],
    stepped: Sequence[Any],
) -> dict[int, Tensor]:
    """Return what a step with a gradient of zeros makes of the tensors whose gradient may have no effect.

    Under decay or momentum such a tensor moves, so that it moves shows nothing. The step is undone.
    """
    small = [
        index
        for index, (leaf, status) in enumerate(zip(leaves, gradients, strict=True))
        if status.kind == "nonzero" and not status.not_finite and groups.listings(leaf) and _is_small(leaf, status)
    ]
    if not small or any(map(needs_closure, groups.optimizers)):
        return {}
    present = {tensor: tensor.grad for tensor in (*leaves, *groups.tensors) if tensor.grad is not None}
    with restored([model], optimizers=stepped, written=leaves, accumulation_hooks=True):
        for tensor, gradient in present.items():
            tensor.grad = gradient.clone()
        for index in small:
            leaves[index].grad = torch.zeros_like(leaves[index])
        try:
            take_step(groups.optimizers, lambda: None)
        except Exception:  # the step that counts will raise it too
            return {}
        return {index: leaves[index].detach().clone() for index in small}


def _is_small(leaf: Tensor, status: GradientStatus) -> bool:
    """Return whether a gradient is so small beside the values that steps of usual sizes round away."""
    return leaf.is_floating_point() and status.largest <= 16 * torch.finfo(leaf.dtype).eps * extent(leaf).largest


def nonzero_after_step(
    zero: Sequence[int], leaves: Sequence[Tensor], loss_fn: Callable[[], Tensor], step: Step
) -> set[int]:
    """Return the indices of the tensors whose gradient, exactly zero before the step, is nonzero after it.

    Behind a factor that starts at zero (LoRA, zero-initialized branches) every gradient is zero at first, although the
    parameter is not dead. If no optimizer has stepped, a small step down the gradient is taken in its place.
    """
    with torch.no_grad():
        for leaf in leaves:
            if leaf.grad is not None and not step.taken:
                leaf.add_(leaf.grad, alpha=-1e-3)
            leaf.grad = None
    torch.clear_autocast_cache()  # in the user's autocast block it still holds the casts of before the step
    try:
        loss_fn().backward()
    except Exception:  # a pass that cannot run twice shows nothing here
        return set()
    gradients = {index: leaves[index].grad for index in zero}
    return {
        index
        for index, gradient in gradients.items()
        if gradient is not None and not (size := extent(gradient)).zero and size.finite
    }
