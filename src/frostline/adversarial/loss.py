"""The loss of adversarial training: the clean loss, and that of a pass whose vectors are moved against the model.

The idea: the adversarial passes come first, each inside `restored`, so they begin where the clean pass will begin: at
the same random numbers, buffers and modes. Only the clean pass, the last one, leaves anything behind. A graph made
inside `restored` is used after it, so such a pass gets buffers of its own, which nobody writes to later.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from frostline.adversarial.perturb import applied, check_arguments, direction, like, perturbation
from frostline.errors import ProbeError
from frostline.probe.gradients import gradients
from frostline.probe.inputs import check_loss
from frostline.probe.outputs import Output, described, observing, place
from frostline.probe.restore.reachable import reachable
from frostline.probe.restore.restored import compile_stance, restored

_NEAR = 0.1  # times epsilon: how far away VAT measures the curvature of the divergence


def loss(
    loss_fn: Callable[[], Any],
    module: Output,
    *,
    epsilon: float,
    steps: int = 1,
    kind: Literal["fgm", "pgd", "vat"] = "fgm",
    weight: float = 1.0,
    norm: Literal["l2", "linf"] = "l2",
    per: Literal["token", "sentence"] = "token",
    model: nn.Module | None = None,
    generators: Iterable[Any] = (),
) -> Tensor:
    """Return the clean loss plus `weight` times the loss with `module`'s output moved by `epsilon` against the model.

    In a training step: `fl.adversarial.loss(loss_fn, model.embed, epsilon=0.5).backward()`. All passes have the same
    dropout masks and the same sampled negatives; BatchNorm statistics are updated once, by the clean pass, and the
    random generators advance as in a step without it. Gradients can be accumulated, under autocast and under
    DistributedDataParallel, which communicates once.

    Args:
        loss_fn: Takes no arguments, runs the forward pass on the same batch at each call, returns the loss: one number.
            For "vat": returns the loss and the logits, `(loss, logits)`, or the logits alone where a batch has no
            labels; logits of shape (*, K), without rows for padding.
        module: As for `perturb`: what is moved, such as a model's embedding.
        epsilon: As for `perturb`, the length by which each vector moves.
        steps: 1 for "fgm"; steps of "pgd"; of "vat", how often the direction is refined, 1 in the paper.
        kind: "fgm": one step along the gradient. "pgd": several. "vat": in the direction in which the predicted
            distributions change most; the adversarial loss is then the Kullback-Leibler divergence from the clean
            ones, a mean over rows, and needs no labels.
        weight: Of the adversarial loss, 0 or more.
        norm: As for `perturb`; "vat" needs "l2".
        per: As for `perturb`.
        model: As for `perturb`.
        generators: As for `perturb`.

    Returns:
        One number with its graph: the gradient of both passes, while the perturbation counts as constant.

    Raises:
        ProbeError: As `perturb`; or `module` is called inside a checkpoint, which would forget the perturbation when it
            computes the pass again.
        ValueError: An argument is not as above.

    Cost: `steps` forward and backward passes for the perturbation ("vat": one more forward), then two forward passes,
        whose graphs are both in memory, and a copy of the buffers. "vat" draws one number from torch's generator.

    Example:
        >>> import frostline as fl
        >>> model = nn.Sequential(nn.Embedding(5, 2), nn.Dropout(0.5), nn.Linear(2, 1))
        >>> loss_fn = lambda: model(torch.tensor([1, 4])).square().mean()
        >>> fl.adversarial.loss(loss_fn, model[0], epsilon=0.5).backward()
        >>> model[2].weight.grad.shape
        torch.Size([1, 2])

    Source: Miyato et al. (2017) for FGM and VAT on word vectors, Madry et al. (2018) for PGD.
    """
    check_arguments(epsilon, steps, norm, per)
    if kind not in ("fgm", "pgd", "vat"):
        raise ValueError(f"kind: expected 'fgm', 'pgd' or 'vat', got {kind!r}.")
    if kind == "fgm" and steps != 1:
        raise ValueError(f"steps: 'fgm' takes one step, got {steps}. Pass kind='pgd' for more.")
    if kind == "vat" and norm != "l2":
        raise ValueError(f"norm: 'vat' needs 'l2', got {norm!r}.")
    if not 0 <= weight < float("inf"):
        raise ValueError(f"weight: expected a finite number, 0 or more, got {weight}.")
    generators = list(generators)
    if kind == "vat":
        divergence, delta = _virtual(loss_fn, module, epsilon, steps, per, model, generators)
        adversarial = _adversarial_pass(divergence, loss_fn, module, delta, model, generators)
        returned = loss_fn()
        return weight * adversarial + (check_loss(returned[0]) if isinstance(returned, tuple) else 0)
    delta = perturbation(loss_fn, module, epsilon, steps, norm, per, model, generators)
    adversarial = _adversarial_pass(loss_fn, loss_fn, module, delta, model, generators)
    return check_loss(loss_fn()) + weight * adversarial


def _adversarial_pass(
    function: Callable[[], Tensor],
    loss_fn: Callable[[], Any],
    module: Output,
    delta: Any,
    model: nn.Module | None,
    generators: list[Any],
) -> Tensor:
    """Return the loss of a pass with `delta` added, and its graph, which stays valid; nothing else stays."""
    modules = [each for each in (place(module)[0], model) if isinstance(each, nn.Module)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(restored(modules, function=loss_fn, generators=generators))
        stack.enter_context(compile_stance("force_eager"))  # compiled code skips hooks
        _copy_buffers([*modules, *reachable(loss_fn, *modules).modules])
        stack.enter_context(applied(module, delta))
        stack.enter_context(observing(place(module)[0], lambda call, output: _outside_checkpoint(module, output)))
        return check_loss(function())


def _virtual(
    loss_fn: Callable[[], Any],
    module: Output,
    epsilon: float,
    steps: int,
    per: str,
    model: nn.Module | None,
    generators: list[Any],
) -> tuple[Callable[[], Tensor], Any]:
    """Return the divergence from the clean distributions, as a function of a pass, and what to move the output by."""
    directions = torch.Generator().manual_seed(int(torch.randint(2**62, ())))  # each step has a direction of its own
    where, only = place(module)
    random: list[Tensor] = []

    def draw(call: int | None, output: Any) -> Any:
        if only in (None, call):
            random.append(torch.randn(output.shape, generator=directions).to(output.device, output.dtype))
        return output

    modules = [each for each in (where, model) if isinstance(each, nn.Module)]
    with (
        restored(modules, function=loss_fn, generators=generators),
        compile_stance("force_eager"),
        observing(where, draw),
    ):
        clean = _log_probabilities(loss_fn()).detach()  # (rows, K)
    if not random:
        raise ProbeError(f"{described(module)}: not called in the pass. A direct call of its `forward` is not seen.")

    def divergence() -> Tensor:
        return kl_div(_log_probabilities(loss_fn()), clean, log_target=True, reduction="sum") / len(clean)

    found: Any = tuple(random) if len(random) > 1 else random[0]
    for _ in range(steps):
        near = like(found, [_NEAR * epsilon * call for call in direction(found, module, "l2", per)])
        with applied(module, near):
            (found,) = gradients(divergence, [module], model=model, generators=generators)
    return divergence, like(found, [epsilon * call for call in direction(found, module, "l2", per)])


def _log_probabilities(returned: Any) -> Tensor:
    """Return the log-probabilities of the logits, shape (rows, K), float32 or wider."""
    logits = returned[1] if isinstance(returned, tuple) and len(returned) == 2 else returned
    if not isinstance(logits, Tensor) or logits.dim() < 2:
        raise ProbeError("loss_fn: for 'vat' it must return the logits, shape (*, K), or (loss, logits).")
    return log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1).flatten(0, -2)


def _outside_checkpoint(module: Output, output: Any) -> Any:
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    if (hooks and "_checkpoint_hook" in hooks[0].__qualname__) or not torch.is_grad_enabled():
        raise ProbeError(
            f"{described(module)}: called inside a checkpoint, or without gradients. A checkpoint forgets the "
            "perturbation when it computes the pass again: leave this module out of it."
        )
    return output


def _copy_buffers(modules: list[nn.Module]) -> None:
    """Give modules copies of their buffers, and of other tensors that do not learn; `restored` puts theirs back."""
    copies: dict[int, Tensor] = {}
    for module in {each for root in modules for each in root.modules()}:
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for table in (module._buffers, module.__dict__):
            for name, value in table.items():
                if type(value) is Tensor and not value.requires_grad:
                    table[name] = copies.setdefault(id(value), value.clone())
