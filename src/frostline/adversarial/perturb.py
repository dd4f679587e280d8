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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from frostline.errors import ProbeError
from frostline.probe.gradients import gradients
from frostline.probe.outputs import Output, described, observing, place
from frostline.probe.restore.restored import compile_stance, restored

_OVERSHOOT = 2.5  # Madry et al.: the steps together are longer than epsilon, so they can go along the boundary, too


class Perturbation(NamedTuple):
    """What `perturb` returns.

    Attributes:
        delta: What to add to the module's output: its shape and dtype, detached. If the module is called several times
            in a pass, a tuple: one for each call.
        loss: The loss with `delta` added, detached.
    """

    delta: Any
    loss: Tensor


def perturb(
    loss_fn: Callable[[], Tensor],
    module: Output,
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
        module: The module whose output, one tensor, is perturbed, such as a model's embedding: at all its calls, or at
            one, `(module, 0)`. Or the name of a tensor that the forward passes to `fl.mark(x, name)`. Nothing before
            it needs to learn.
        epsilon: Largest norm of the perturbation, above 0, in the units of the output. Compare it with the norm of a
            vector.
        steps: 1 is FGM. More are PGD, which starts at the unchanged output and goes `2.5 * epsilon / steps` in a step,
            at most `epsilon`.
        norm: "l2": the square root of the sum of squares. "linf": the largest absolute value, so every entry changes by
            up to `epsilon`.
        per: What has a norm of at most `epsilon` under "l2": each vector along the last dimension ("token"), or each
            index of the first dimension as a whole ("sentence"), all calls together. Under "linf" both are the same.
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
    check_arguments(epsilon, steps, norm, per)
    generators = list(generators)
    delta = perturbation(loss_fn, module, epsilon, steps, norm, per, model, generators)
    with contextlib.ExitStack() as stack:
        modules = [each for each in (place(module)[0], model) if isinstance(each, nn.Module)]
        stack.enter_context(restored(modules, function=loss_fn, generators=generators))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())  # as in the passes before: a loss may differentiate by itself
        stack.enter_context(compile_stance("force_eager"))  # compiled code skips hooks
        stack.enter_context(applied(module, delta))
        return Perturbation(delta, loss_fn().detach().clone())


def perturbation(
    loss_fn: Callable[[], Tensor],
    module: Output,
    epsilon: float,
    steps: int,
    norm: str,
    per: str,
    model: nn.Module | None,
    generators: list[Any],
) -> Any:
    """Return the `delta` of `perturb`, which see, without the pass that says what the loss is then."""
    length = epsilon if steps == 1 else min(epsilon, _OVERSHOOT * epsilon / steps)
    delta: Any = None
    for _ in range(steps):
        with applied(module, delta):
            (gradient,) = gradients(loss_fn, [module], model=model, generators=generators)
        calls = direction(gradient, module, norm, per)
        if delta is None:
            calls = [length * call for call in calls]
        else:
            pairs = zip(_calls(delta), calls, strict=True)
            longer = [before.to(call.dtype) + length * call for before, call in pairs]
            calls = _projected(longer, epsilon, norm, per)
        delta = like(gradient, calls)
    return delta


def direction(gradient: Any, module: Output, norm: str, per: str) -> list[Tensor]:
    """Return the gradient of each call scaled to norm 1, float32 or wider; what is 0 stays.

    Raises:
        ProbeError: The gradient is not finite.
    """
    calls = _calls(gradient)
    if not all(call.isfinite().all() for call in calls):
        raise ProbeError(f"{described(module)}: the gradient at its output is not finite: no direction to go.")
    wide = [call.to(torch.promote_types(call.dtype, torch.float32)) for call in calls]
    return [call.sign() for call in wide] if norm == "linf" else _by_part(_normalized, wide, per)


def like(gradient: Any, calls: Sequence[Tensor]) -> Any:
    """Return `calls` in the dtype of `gradient`: a tuple of them if it is one, else the only one."""
    same = tuple(call.to(each.dtype) for call, each in zip(calls, _calls(gradient), strict=True))
    return same if isinstance(gradient, tuple) else same[0]


@contextlib.contextmanager
def applied(module: Output, delta: Any) -> Iterator[None]:
    """Add `delta` to the output of `module` in the block: to train on what `perturb` returned.

    Args:
        module: What was passed to `perturb`.
        delta: What to add, the shape of the output: a tensor, which is added at every call, or a tuple with one for
            each call. None adds nothing.

    Raises:
        ProbeError: The output has another shape than `delta`; or the module was not called in the block, or more often
            than there are tensors, so that not everything was added (compiled code does not run hooks).

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
    where, only = place(module)
    name, added = described(where), set()

    def add(call: int | None, output: Any) -> Any:
        if call is None and (only is not None or isinstance(delta, tuple)):
            raise ProbeError(f"{name}: several calls in a checkpoint, which repeats them in another order.")
        if only not in (None, call):
            return output
        added.add(call)
        if not isinstance(delta, tuple):
            addend = delta
        elif call is not None and call < len(delta):
            addend = delta[call]
        else:
            raise ProbeError(f"{name}: call {call}, but delta has {len(delta)} parts. Run one pass in the block.")
        if getattr(output, "shape", None) != addend.shape:
            raise ProbeError(
                f"{name}: its output has shape {tuple(getattr(output, 'shape', ()))}, delta {tuple(addend.shape)}. "
                "The batch must be the one that delta was computed for."
            )
        return output + addend

    with observing(where, add):
        yield
    if not added:
        raise ProbeError(f"{name}: not called in the block, so nothing was perturbed. Compiled code skips hooks.")
    if isinstance(delta, tuple) and len(added) < len(delta):
        raise ProbeError(f"{name}: called {len(added)} times in the block, but delta has {len(delta)} parts.")


def _calls(delta: Any) -> tuple[Tensor, ...]:
    return delta if isinstance(delta, tuple) else (delta,)


def _by_part(function: Callable[[Tensor], Tensor], calls: Sequence[Tensor], per: str) -> list[Tensor]:
    """Return `calls` after `function`, which gets a matrix, (N, *), with a row for each part that has a norm."""
    if per == "token":
        matrices = [call.reshape(-1, call.shape[-1]) if call.dim() else call.reshape(1, 1) for call in calls]
        return [function(matrix).view_as(call) for matrix, call in zip(matrices, calls, strict=True)]
    if any(call.dim() == 0 or len(call) != len(calls[0]) for call in calls):
        if len(calls) == 1:
            return [function(calls[0].reshape(1, 1)).view_as(calls[0])]
        raise ProbeError("per: 'sentence' needs calls of the same first dimension. Pass per='token', or one call.")
    matrices = [call.reshape(len(call), -1) for call in calls]
    whole = function(torch.cat(matrices, 1))
    parts = whole.split([matrix.shape[1] for matrix in matrices], 1)
    return [part.reshape(call.shape) for part, call in zip(parts, calls, strict=True)]


def _normalized(vectors: Tensor) -> Tensor:
    """Return each row of `vectors` scaled to norm 1; a row of zeros stays."""
    # First by the largest entry: the squares of gradients around 1e-30 would underflow, and their norm be 0.
    vectors = vectors / vectors.abs().amax(1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
    norms: Tensor = vectors.norm(dim=1, keepdim=True)  # at least 1 now, or 0
    return vectors / norms.clamp_min(1)


def _projected(calls: Sequence[Tensor], epsilon: float, norm: str, per: str) -> list[Tensor]:
    """Return `calls` with every part of norm above `epsilon` scaled (l2) or clamped (linf) to it."""
    if norm == "linf":
        return [call.clamp(-epsilon, epsilon) for call in calls]
    # A norm of 0 gives inf, and so a factor of 1.
    return _by_part(lambda x: x * (epsilon / x.norm(dim=1, keepdim=True)).clamp_max(1), calls, per)


def check_arguments(epsilon: float, steps: int, norm: str, per: str) -> None:
    """Raise ValueError for what is out of range."""
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon: expected a finite number above 0, got {epsilon}.")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: expected a whole number, 1 or more, got {steps}.")
    if norm not in ("l2", "linf"):
        raise ValueError(f"norm: expected 'l2' or 'linf', got {norm!r}.")
    if per not in ("token", "sentence"):
        raise ValueError(f"per: expected 'token' or 'sentence', got {per!r}.")
