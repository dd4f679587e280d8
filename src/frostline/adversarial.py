"""The smallest change of a module's output that hurts the most: FGM and PGD on looked-up vectors, or on any output.

Letters used for shapes in this file:
    B  sentences of a batch       T  tokens       D  width of a vector; any other shape of output will do

The idea: the gradient of the loss at the output says which way hurts. One step that way, as far as `radius` allows, is
FGM (FGSM under the largest-entry norm); several shorter ones, each brought back into the ball of `radius`, are PGD. The
gradient comes from `fl.gradients`, so an attack between two training steps leaves no trace in the training, and every
step of it sees the same dropout masks and the same sampled negatives: those of the next training step.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from frostline.errors import ProbeError
from frostline.probe.gradients import gradients
from frostline.probe.restore.restored import kept, stance

__all__ = ["Perturbation", "applied", "perturb"]

_OVERSHOOT = 2.5  # of Madry et al.: the steps together could go this much further than the radius


class Perturbation(NamedTuple):
    """What `perturb` found.

    Attributes:
        delta: What to add to the module's output: its shape and dtype, detached.
        loss: The loss with `delta` added, detached.
    """

    delta: Tensor
    loss: Tensor


def perturb(
    loss_fn: Callable[[], Tensor],
    module: nn.Module,
    *,
    radius: float,
    steps: int = 1,
    norm: Literal["l2", "linf"] = "l2",
    per: Literal["token", "sentence"] = "token",
    model: nn.Module | None = None,
    generators: Iterable[Any] = (),
) -> Perturbation:
    """Find the change of `module`'s output, no longer than `radius`, under which the loss rises; leave no trace.

    Args:
        loss_fn: Takes nothing, runs the forward pass on the same batch at each call, returns the loss: one number.
        module: The module whose output is changed, such as a model's embedding: one tensor, made once in the pass.
            Nothing before it needs to learn.
        radius: Length of the change, above 0, in the units of the output. Compare it with the length of a vector.
        steps: 1 is FGM. More are PGD, which starts at the unchanged output and goes `2.5 * radius / steps` in a step,
            at most `radius`.
        norm: "l2": length is the square root of the sum of squares. "linf": the largest entry, so every entry moves
            by up to `radius`.
        per: What has a length of at most `radius` under "l2": each vector along the last dimension ("token"), or all
            of each entry of the first dimension ("sentence"). Under "linf" both are the same.
        model: As for `fl.gradients`: a module that `loss_fn` neither calls nor holds.
        generators: As for `fl.gradients`: generators that cannot be found from `loss_fn`.

    Returns:
        `delta`, shape and dtype of the output, and the loss under it. Where the gradient is 0 (padding), `delta` is 0.

    Raises:
        ProbeError: What `fl.gradients` raises; the gradient is not finite; the output's shape changes between calls.
        ValueError: `radius`, `steps`, `norm` or `per` is none of those above.

    Cost: `steps` forward and backward passes and one forward pass; memory as for `fl.gradients`.

    Example:
        >>> import frostline as fl
        >>> model = nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 1))
        >>> loss_fn = lambda: model(torch.tensor([1, 4])).square().mean()
        >>> delta, loss = fl.adversarial.perturb(loss_fn, model[0], radius=0.5)
        >>> delta.norm(dim=-1), (loss > loss_fn()).item()
        (tensor([0.5000, 0.5000]), True)

    Source: FGSM, Goodfellow et al. (2015); FGM on word vectors, Miyato et al. (2017); PGD, Madry et al. (2018).
    """
    _check(radius, steps, norm, per)
    generators = list(generators)
    length = radius if steps == 1 else min(radius, _OVERSHOOT * radius / steps)
    delta: Tensor | None = None
    for _ in range(steps):
        with applied(module, delta):
            (gradient,) = gradients(loss_fn, [module], model=model, generators=generators)
        if not gradient.isfinite().all():
            raise ProbeError(f"{type(module).__name__}: the gradient at its output is not finite, so no way is uphill.")
        wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        step = length * (wide.sign() if norm == "linf" else _unit(wide, per))
        delta = (step if delta is None else _inside(delta.to(step.dtype) + step, radius, norm, per)).to(gradient.dtype)
    assert delta is not None  # there is at least one step
    return Perturbation(delta, _loss_under(loss_fn, module, delta, model, generators))


@contextlib.contextmanager
def applied(module: nn.Module, delta: Tensor | None) -> Iterator[None]:
    """Add `delta` to the output of `module` in the block: to train on what `perturb` found.

    Args:
        module: The module that `delta` was found for.
        delta: What to add, the shape of the output; None adds nothing.

    Raises:
        ProbeError: The output has another shape than `delta`; or the module was not called in the block, so that
            nothing was added (compiled code runs no hooks).

    Example:
        >>> import frostline as fl
        >>> embedding = nn.Embedding(5, 2)
        >>> with fl.adversarial.applied(embedding, torch.ones(3, 2)):
        ...     moved = embedding(torch.tensor([0, 1, 2]))
        >>> torch.equal(moved, embedding(torch.tensor([0, 1, 2])) + 1)
        True
    """
    if delta is None:
        yield
        return
    name, added = type(module).__name__, []

    def add(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if getattr(output, "shape", None) != delta.shape:
            raise ProbeError(
                f"{name}: its output has shape {tuple(getattr(output, 'shape', ()))}, delta {tuple(delta.shape)}. "
                "The batch must be the one that delta was found for."
            )
        added.append(True)
        return output + delta

    with module.register_forward_hook(add):
        yield
    if not added:
        raise ProbeError(f"{name}: not called in the block, so nothing was perturbed. Compiled code runs no hooks.")


def _loss_under(
    loss_fn: Callable[[], Tensor], module: nn.Module, delta: Tensor, model: nn.Module | None, generators: list[Any]
) -> Tensor:
    with contextlib.ExitStack() as stack:
        modules = [module] if model is None else [module, model]
        stack.enter_context(kept(modules, function=loss_fn, generators=generators))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())  # as in the passes before: a loss may need it
        stack.enter_context(stance("force_eager"))  # compiled code runs no hooks
        stack.enter_context(applied(module, delta))
        return loss_fn().detach().clone()


def _rows(x: Tensor, per: str) -> Tensor:
    """The parts of `x` that have a length each, one a row."""
    if x.dim() == 0:
        return x.reshape(1, 1)
    return x.reshape(-1, x.shape[-1]) if per == "token" else x.reshape(len(x), -1)


def _unit(x: Tensor, per: str) -> Tensor:
    """`x` with every part brought to length 1; a part of zeros stays. By its largest entry first: no square is lost."""
    rows = _rows(x, per)
    rows = rows / rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    lengths: Tensor = rows.norm(dim=1, keepdim=True)
    return (rows / lengths.clamp_min(1)).view_as(x)


def _inside(x: Tensor, radius: float, norm: str, per: str) -> Tensor:
    """`x` with every part that is longer than `radius` brought back to it."""
    if norm == "linf":
        return x.clamp(-radius, radius)
    rows = _rows(x, per)
    lengths: Tensor = rows.norm(dim=1, keepdim=True)
    return (rows * (radius / lengths).clamp_max(1)).view_as(x)


def _check(radius: float, steps: int, norm: str, per: str) -> None:
    if not 0 < radius < math.inf:
        raise ValueError(f"radius: {radius}, but it must be a finite number above 0.")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: {steps}, but it must be a whole number, 1 or more.")
    if norm not in ("l2", "linf"):
        raise ValueError(f"norm: {norm!r}, but it must be 'l2' or 'linf'.")
    if per not in ("token", "sentence"):
        raise ValueError(f"per: {per!r}, but it must be 'token' or 'sentence'.")
