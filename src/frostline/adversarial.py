"""Adversarial perturbation of a module's output, such as looked-up word vectors: FGM and PGD.

Letters used for shapes in this file:
    B  sentences of a batch       T  tokens       D  width of a vector; outputs of any other shape work, too
    N  parts that have a norm each, tokens or sentences

The idea: the loss rises fastest along its gradient at the output. One step of length `epsilon` along it is FGM (FGSM
under the maximum norm); several shorter ones, each projected back into the ball of radius `epsilon`, are PGD. The
gradient comes from `fl.gradients`, so an attack between two training steps does not change the training, and each of
its steps has the same dropout masks and the same sampled negatives: those of the next training step.
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
from frostline.probe.restore.restored import compile_stance, restored

__all__ = ["Perturbation", "applied", "perturb"]

_OVERSHOOT = 2.5  # Madry et al.: the steps together are longer than epsilon, so they can go along the boundary, too


class Perturbation(NamedTuple):
    """What `perturb` returns.

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
    epsilon: float,
    steps: int = 1,
    norm: Literal["l2", "linf"] = "l2",
    per: Literal["token", "sentence"] = "token",
    model: nn.Module | None = None,
    generators: Iterable[Any] = (),
) -> Perturbation:
    """Return a perturbation of `module`'s output, of norm at most `epsilon`, that increases the loss.

    Nothing is modified, as with `fl.gradients`.

    Args:
        loss_fn: Takes no arguments, runs the forward pass on the same batch at each call, returns the loss: one number.
        module: The module whose output is perturbed, such as a model's embedding: one tensor, computed once in the
            pass. Nothing before it needs to learn.
        epsilon: Largest norm of the perturbation, above 0, in the units of the output. Compare it with the norm of a
            vector.
        steps: 1 is FGM. More are PGD, which starts at the unchanged output and goes `2.5 * epsilon / steps` in a step,
            at most `epsilon`.
        norm: "l2": the square root of the sum of squares. "linf": the largest absolute value, so every entry changes by
            up to `epsilon`.
        per: What has a norm of at most `epsilon` under "l2": each vector along the last dimension ("token"), or each
            index of the first dimension as a whole ("sentence"). Under "linf" both are the same.
        model: As for `fl.gradients`: a module that `loss_fn` neither calls nor references.
        generators: As for `fl.gradients`: generators that cannot be found from `loss_fn`.

    Returns:
        `delta`, shape and dtype of the output, and the loss with it. Where the gradient is 0 (padding), `delta` is 0.

    Raises:
        ProbeError: As `fl.gradients`; the gradient is not finite; the output's shape changes between calls.
        ValueError: `epsilon`, `steps`, `norm` or `per` is not as above.

    Cost: `steps` forward and backward passes and one forward pass; memory as for `fl.gradients`.

    Example:
        >>> import frostline as fl
        >>> model = nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 1))
        >>> loss_fn = lambda: model(torch.tensor([1, 4])).square().mean()
        >>> delta, loss = fl.adversarial.perturb(loss_fn, model[0], epsilon=0.5)
        >>> delta.norm(dim=-1), (loss > loss_fn()).item()
        (tensor([0.5000, 0.5000]), True)

    Source: FGSM, Goodfellow et al. (2015); FGM on word vectors, Miyato et al. (2017); PGD, Madry et al. (2018).
    """
    _check_arguments(epsilon, steps, norm, per)
    generators = list(generators)
    length = epsilon if steps == 1 else min(epsilon, _OVERSHOOT * epsilon / steps)
    delta: Tensor | None = None
    for _ in range(steps):
        with applied(module, delta):
            (gradient,) = gradients(loss_fn, [module], model=model, generators=generators)
        if not gradient.isfinite().all():
            raise ProbeError(f"{type(module).__name__}: the gradient at its output is not finite: no direction to go.")
        wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        step = length * (wide.sign() if norm == "linf" else _normalized(wide, per))
        if delta is not None:
            step = _projected(delta.to(step.dtype) + step, epsilon, norm, per)
        delta = step.to(gradient.dtype)
    assert delta is not None  # there is at least one step
    return Perturbation(delta, _loss_under(loss_fn, module, delta, model, generators))


@contextlib.contextmanager
def applied(module: nn.Module, delta: Tensor | None) -> Iterator[None]:
    """Add `delta` to the output of `module` in the block: to train on what `perturb` returned.

    Args:
        module: The module that was passed to `perturb`.
        delta: What to add, the shape of the output; None adds nothing.

    Raises:
        ProbeError: The output has another shape than `delta`; or the module was not called in the block, so that
            nothing was added (compiled code does not run hooks).

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
                "The batch must be the one that delta was computed for."
            )
        added.append(True)
        return output + delta

    with module.register_forward_hook(add):
        yield
    if not added:
        raise ProbeError(f"{name}: not called in the block, so nothing was perturbed. Compiled code skips hooks.")


def _loss_under(
    loss_fn: Callable[[], Tensor], module: nn.Module, delta: Tensor, model: nn.Module | None, generators: list[Any]
) -> Tensor:
    with contextlib.ExitStack() as stack:
        modules = [module] if model is None else [module, model]
        stack.enter_context(restored(modules, function=loss_fn, generators=generators))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())  # as in the passes before: a loss may differentiate by itself
        stack.enter_context(compile_stance("force_eager"))  # compiled code skips hooks
        stack.enter_context(applied(module, delta))
        return loss_fn().detach().clone()


def _vectors(x: Tensor, per: str) -> Tensor:
    """Return `x` as a matrix, (N, *): a row for each part that has a norm of its own."""
    if x.dim() == 0:
        return x.reshape(1, 1)
    return x.reshape(-1, x.shape[-1]) if per == "token" else x.reshape(len(x), -1)


def _normalized(x: Tensor, per: str) -> Tensor:
    """Return `x` with every part scaled to norm 1; a part of zeros stays."""
    vectors = _vectors(x, per)
    # First by the largest entry: the squares of gradients around 1e-30 would underflow, and their norm be 0.
    vectors = vectors / vectors.abs().amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    norms: Tensor = vectors.norm(dim=1, keepdim=True)  # at least 1 now, or 0
    return (vectors / norms.clamp_min(1)).view_as(x)


def _projected(x: Tensor, epsilon: float, norm: str, per: str) -> Tensor:
    """Return `x` with every part of norm above `epsilon` scaled (l2) or clamped (linf) to it."""
    if norm == "linf":
        return x.clamp(-epsilon, epsilon)
    vectors = _vectors(x, per)
    norms: Tensor = vectors.norm(dim=1, keepdim=True)
    return (vectors * (epsilon / norms).clamp_max(1)).view_as(x)  # a norm of 0 gives inf, and so a factor of 1


def _check_arguments(epsilon: float, steps: int, norm: str, per: str) -> None:
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon: expected a finite number above 0, got {epsilon}.")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: expected a whole number, 1 or more, got {steps}.")
    if norm not in ("l2", "linf"):
        raise ValueError(f"norm: expected 'l2' or 'linf', got {norm!r}.")
    if per not in ("token", "sentence"):
        raise ValueError(f"per: expected 'token' or 'sentence', got {per!r}.")
