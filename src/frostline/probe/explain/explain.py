"""Which parameters of a model will move, which will not, and the line of code that says why.

The idea: ask a real pass and a real step, and then take them back. One forward and backward, watched (observe.py),
shows which parameters get a gradient; that is the truth, and the trace only says where one was lost. One step of the
optimizers shows what moves: "below the resolution of its dtype" and "moved by a stale gradient" are seen, not computed.
Everything happens inside `kept` (keep.py), so that nothing is left of it.

What the optimizers hold: which tensors, how often, at what learning rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frostline.partial.model_tensors import Found, find_tensors
from frostline.partial.module import state_of
from frostline.partial.sharded import is_sharded
from frostline.probe.explain.backward import Observed, extremes
from frostline.probe.explain.explanation import Explanation, Finding
from frostline.probe.explain.reasons import reason_for
from frostline.probe.explain.verdicts import BY_PLAN, IN_PART, LEARNS, MOVES_ANYWAY, TWICE, ZERO, Seen, words_for
from frostline.probe.inputs import check_loss_fn, check_model, optimizers_in
from frostline.probe.restore.bits import local, same
from frostline.probe.restore.reachable import optimizers_in_backward
from frostline.probe.restore.restored import kept
from frostline.probe.restore.snapshot import Before
from frostline.probe.trial import take_step, unwrapped, written_buffers


def explain(model: nn.Module, loss_fn: Callable[[], Tensor], optimizer: Any = None) -> Explanation:
    """Say for every parameter whether it will move at the next step, and if not, why not and where.

    One forward and backward and one step are really taken, and taken back: weights, `.grad`, buffers, random numbers,
    optimizer state and modes are as they were afterwards, bit for bit, also when something raises.

    Args:
        model: Any module. One that is compiled, or in a DistributedDataParallel, is looked at inside.
        loss_fn: Takes nothing, runs the forward pass, returns the loss: one number.
        optimizer: What steps the model: an object with `param_groups` and `step`, or a list of them. None: what only
            an optimizer can tell (membership, learning rates, rounding) is not judged.

    Returns:
        An Explanation: print it; `.alarms` is empty if all is well; `.to_dict()` is for programs. Every parameter has
        one of these verdicts, the first that holds, and the others as notes:

        - "frozen by plan", "frozen": by `train_only`; by `requires_grad=False`.
        - "not finite": its gradient, its values or the loss hold NaN or Inf, now or after the step.
        - "cut": its value reaches the loss, its gradient does not come back; `where` is the line that cuts.
        - "unused": its value does not reach the loss.
        - "not in optimizer": it gets a gradient, and no parameter group holds it.
        - "moves without gradient": it gets none, or zeros, and decay, momentum or a stale `.grad` moves it.
        - "learning rate 0"; "zero gradient": exactly zero everywhere, and after a step too. Behind a factor that only
          starts at zero (LoRA) it is a note.
        - "rounds away": the step is below the resolution of its dtype, so no bit changes.
        - "learns in part": rows or entries, as planned; "learns".

        A frozen tensor that moves all the same is "moves without gradient".

    Raises:
        ProbeError: The loss is not one number, or the pass cannot be looked at without changing something.
        TypeError: `optimizer` is no optimizer, or `model` no module.

    Cost: one forward, backward and step (a second forward and backward if a gradient is zero), a note for each torch
        function that runs, and a copy of the parameters and of the optimizer's state meanwhile. Hooks of the user's
        run. What the pass does outside of torch and its modules (a list appended to, a file read on) stays done.

    Example:
        >>> import frostline as fl
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> x = torch.ones(3, 2)
        >>> explanation = fl.explain(model, lambda: model[1](model[0](x).detach()).sum())
        >>> explanation.alarms, explanation.to_dict()["0.weight"]["verdict"]
        (['0.weight', '0.bias'], 'cut')
    """
    check_model(model)
    check_loss_fn(loss_fn)
    groups = Groups(optimizer)
    whole, model = model, unwrapped(model)
    remarks = [_COMPILED] if any("_orig_mod" in module._modules for module in whole.modules()) else []
    found = find_tensors(model)
    tensors = [one.tensor if one.learned is None else one.learned for one in found]
    stale = {tensor: tensor.grad for tensor in (*tensors, *groups.tensors) if tensor.grad is not None}
    hooked = any(getattr(tensor, "_post_accumulate_grad_hooks", None) for tensor in tensors)
    stepped = [*groups.optimizers, *optimizers_in_backward(tensors)]
    with (
        kept([whole], function=loss_fn, optimizers=stepped, written=tensors, accumulation_hooks=True) as before,
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        buffers = dict(model.named_buffers())
        seen = Observed(tensors, loss_fn, {place for place, one in enumerate(found) if one.layout is not None})
        moving = written_buffers(model, buffers, before)
        remarks += [] if seen.connected else [_NOT_CONNECTED]
        try:
            _step(groups, tensors, stale, loss_fn)
            movement = _Movement(before if groups.optimizers or hooked else None)
        except Exception as error:  # whatever an optimizer raises is the user's to read
            remarks.append(f"The step raised {type(error).__name__}: {' '.join(str(error).split())}")
            movement = _Movement(None)
        # Of a sharded model each process sees its shards alone, and one more pass on some of them would never end.
        sharded = any(is_sharded(tensor) for tensor in tensors)
        asleep = [place for place, one in enumerate(seen.brought) if one.gradient == "zero" and not sharded]
        awake = _awake_after_a_step(asleep, tensors, loss_fn, movement) if asleep and not hooked else set()
        findings = [_finding(place, one, seen, groups, movement, place in awake) for place, one in enumerate(found)]
    remarks += groups.remarks(model, tensors, seen.outside)
    return Explanation(findings, _of_frozen(model, moving), remarks)


_COMPILED = "The model is compiled; its eager module is explained."
_NOT_CONNECTED = "The loss requires no gradient: nothing can learn from it."


class _Movement:
    """What the step moved: asked before anything is taken back."""

    def __init__(self, before: Before | None) -> None:
        self._before = before

    @property
    def known(self) -> bool:
        """Whether a step was taken."""
        return self._before is not None

    def of(self, tensor: Tensor) -> bool | None:
        """Whether any bit of `tensor` changed; None where that is not known."""
        if self._before is None or tensor not in self._before or not local(tensor).numel():
            return None
        return not same(self._before[tensor], tensor)


def _step(
    groups: Groups, tensors: Sequence[Tensor], stale: Mapping[Tensor, Tensor], loss_fn: Callable[[], Tensor]
) -> None:
    """Step with the gradients of the pass on top of those that were there before it."""

    def evaluate() -> Tensor:
        for tensor in tensors:
            tensor.grad = stale[tensor].clone() if tensor in stale else None
        loss = loss_fn()
        if loss.requires_grad:
            loss.backward()
        return loss.detach()

    for tensor, older in stale.items():
        tensor.grad = older.clone() if tensor.grad is None else tensor.grad + older
    take_step(groups.optimizers, evaluate)


def _awake_after_a_step(
    asleep: Sequence[int], tensors: Sequence[Tensor], loss_fn: Callable[[], Tensor], movement: _Movement
) -> set[int]:
    """The places of those whose gradient, exactly zero before the step, is not zero after it.

    Behind a factor that starts at zero (LoRA, zero-initialized branches) every gradient is zero at first. That is not
    dead. Where no optimizer has stepped, a small step down the gradient is taken for it.
    """
    with torch.no_grad():
        for tensor in tensors:
            if tensor.grad is not None and not movement.known:
                tensor.add_(tensor.grad, alpha=-1e-3)
            tensor.grad = None
    try:
        loss_fn().backward()
    except Exception:  # a pass that cannot run twice has nothing to say here
        return set()
    gradients = {place: tensors[place].grad for place in asleep}
    return {place for place, one in gradients.items() if one is not None and extremes(one) == (False, True)}


def _finding(place: int, one: Found, observed: Observed, groups: Groups, movement: _Movement, awake: bool) -> Finding:
    tensor = one.tensor if one.learned is None else one.learned
    brought = observed.brought[place]
    moved = movement.of(tensor)
    not_finite = brought.not_finite or ("it, after the step," if moved and not extremes(tensor)[1] else "")
    seen = Seen(
        requires_grad=tensor.requires_grad and tensor.numel() > 0,
        by_plan=any(state_of(module) is not None for module, _ in one.owners),
        gradient=brought.gradient,
        awake=awake,
        finite=not not_finite,
        reaches=observed.reaches(place),
        held=groups.count(tensor),
        rates=groups.rates(tensor),
        moved=moved,
        in_part=one.learned is not None and tensor.numel() < one.tensor.numel(),
        frozen_part_moved=one.learned is not None and bool(movement.of(one.tensor)),
    )
    words = words_for(seen)
    reason, where = reason_for(words[0], place, seen, observed, not_finite, one)
    twice = [TWICE] if (seen.held or 0) > 1 else []
    return Finding(
        one.names[0],
        tuple(one.names[1:]),
        tuple(one.tensor.shape),
        (*words, *twice),
        reason,
        where,
        _groups(one, words, seen, brought.rows),
    )


def _groups(one: Found, words: Sequence[str], seen: Seen, with_gradient: int) -> dict[str, int] | None:
    """How many rows or entries of a partial tensor each verdict holds for; None for one that is whole."""
    if one.layout is None:
        return None
    learned = len(one.layout)
    rest = (one.tensor.shape[0] if one.layout.kind == "rows" else one.tensor.numel()) - learned
    word = words[1] if seen.frozen_part_moved else words[0]
    if word in (LEARNS, IN_PART):
        counts = {LEARNS: with_gradient, ZERO: learned - with_gradient}
    else:
        counts = {word: learned}
    still = MOVES_ANYWAY if seen.frozen_part_moved else BY_PLAN
    counts[still] = counts.get(still, 0) + rest
    return {word: count for word, count in counts.items() if count}


def _of_frozen(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The buffers `names` in whose module nothing learns.

    A module without parameters counts as a part of the one above; so does one that the pass has made, and is gone.
    """
    modules = dict(model.named_modules(remove_duplicate=False))

    def learns(path: str) -> bool:
        parameters = list(modules[path].parameters()) if path in modules else []
        if parameters or not path:
            return any(parameter.requires_grad for parameter in parameters)
        return learns(path.rpartition(".")[0])

    return [name for name in names if not learns(name.rpartition(".")[0])]


class Groups:
    """The parameter groups of no optimizer, one, or several.

    Args:
        optimizer: None, an object with `param_groups` and `step`, or a list of them.

    Attributes:
        optimizers: All of them.
        tensors: What they hold, each once.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizers = [] if optimizer is None else optimizers_in(optimizer)
        self.tensors: list[Tensor] = []
        self._rates: dict[int, list[float]] = {}
        for one in self.optimizers:
            for group in one.param_groups:
                rate = group.get("lr")
                for tensor in group["params"]:
                    if id(tensor) not in self._rates:
                        self.tensors.append(tensor)
                    # An optimizer that finds its own rate says None; that is not 0.
                    self._rates.setdefault(id(tensor), []).append(1.0 if rate is None else float(rate))

    def count(self, tensor: Tensor) -> int | None:
        """How many times `tensor` is listed; None without an optimizer."""
        return len(self.rates(tensor)) if self.optimizers else None

    def rates(self, tensor: Tensor) -> list[float]:
        """The learning rate of each listing of `tensor`."""
        return self._rates.get(id(tensor), [])

    def remarks(self, model: nn.Module, tensors: Sequence[Tensor], outside: Sequence[Tensor]) -> list[str]:
        """What does not fit: the model's `tensors`, the optimizers, and what else the loss reaches, `outside`."""
        known = {id(tensor) for tensor in tensors}
        foreign = [tensor for tensor in self.tensors if id(tensor) not in known]
        sharded = any(is_sharded(tensor) for tensor in tensors)  # the loss then reaches the gathered ones
        attributes = {id(value) for module in model.modules() for value in vars(module).values()}
        free = [leaf for leaf in outside if isinstance(leaf, nn.Parameter) or id(leaf) in attributes]
        lines = [_SHARDED] if sharded else []
        if foreign:
            lines.append(
                f"The optimizer holds {_count(foreign, 'tensor')}, not in the model. "
                "Make it after the model is copied, changed or planned."
            )
        if free and not sharded:
            word = "Parameter" if all(isinstance(leaf, nn.Parameter) for leaf in free) else "tensor"
            lines.append(
                f"The loss also reaches {_count(free, word)}, not among the model's parameters. "
                "Layers in a plain list need nn.ModuleList, tensors nn.Parameter."
            )
        return lines


_SHARDED = "The model is sharded (FSDP2): what is cut shows as unused, without its line."


def _count(tensors: Sequence[Tensor], word: str) -> str:
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors[:3]) + (", ..." if len(tensors) > 3 else "")
    return f"{len(tensors)} {word}{'s' if len(tensors) > 1 else ''} of shape {shapes}"
