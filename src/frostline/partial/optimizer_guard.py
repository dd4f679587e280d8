"""An optimizer that no longer drives what learns is told so.

An optimizer keeps the Parameters it was made with. Made before `train_only`, it holds the frozen part of a partial
tensor and not the learned one: training would go on and nothing would learn there, silently. A hook that torch runs
before every optimizer step looks for that, for learned parts of an earlier plan, and for learned parts that something
else has switched off since.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

from frostline.errors import StaleOptimizerError

_FIX = (
    "Make it after train_only: torch.optim.AdamW(plan.parameters(), ...); or take it over with plan.carry(optimizer)."
)

_learned_of: Any = WeakTensorKeyDictionary()  # frozen part -> weak reference to its learned part
_owners_of: Any = WeakTensorKeyDictionary()  # learned part -> the modules that have it
_undriven: Any = WeakTensorKeyDictionary()  # learned part that no optimizer has stepped -> weak reference to its model
_retired: Any = WeakTensorKeyDictionary()  # learned part of an earlier plan -> weak reference to its tensor, places


def watch(frozen: Tensor, learned: Tensor, owners: Iterable[nn.Module], model: nn.Module) -> None:
    """From now on, an optimizer with `frozen` must have `learned` too.

    `owners` are the modules that have both; `model` is the whole that the plan is for.
    """
    _look_before_every_step()
    _owners_of[learned] = weakref.WeakSet(owners)
    _learned_of[frozen] = weakref.ref(learned)
    _undriven[learned] = weakref.ref(model)


def owners_of(learned: Tensor) -> set[nn.Module]:
    """The modules that were given `learned` by a plan and are still there; none for a copied model's."""
    return set(_owners_of.get(learned, ()))


def retire(frozen: Tensor, learned: Tensor, places: tuple[Tensor, ...]) -> None:
    """`learned` has been written into `frozen`, at `places`, and drives nothing any more."""
    _learned_of.pop(frozen, None)
    _undriven.pop(learned, None)
    _retired[learned] = weakref.ref(frozen), places


def retired_part(learned: Tensor) -> tuple[Tensor | None, tuple[Tensor, ...]] | None:
    """The tensor that `learned` was a part of under an earlier plan (None: it is gone), and its places there."""
    if learned not in _retired:
        return None
    frozen, places = _retired[learned]
    return frozen(), places


def is_stale(tensor: Tensor) -> bool:
    """Whether a plan has put other parts in the place of `tensor`, a Parameter or a learned part."""
    return tensor in _retired or tensor in _learned_of


@functools.cache
def _look_before_every_step() -> None:
    register_optimizer_step_pre_hook(_look)


def _look(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    ids = {id(parameter) for parameter in held}
    for parameter in held:
        learned = _learned_of[parameter]() if parameter in _learned_of else None
        if learned is not None and id(learned) not in ids:
            raise StaleOptimizerError(
                f"optimizer: {type(optimizer).__name__} holds the frozen part of a partial tensor of shape "
                f"{tuple(parameter.shape)} but not its learned part, so nothing would learn there. {_FIX}"
            )
        if parameter in _retired:
            raise StaleOptimizerError(
                f"optimizer: {type(optimizer).__name__} holds a learned part of shape {tuple(parameter.shape)} from "
                f"an earlier plan, which no module uses any more. {_FIX}"
            )
        if _left_behind(parameter):
            raise StaleOptimizerError(
                f"optimizer: {type(optimizer).__name__} holds a learned part of shape {tuple(parameter.shape)} that "
                "fully_shard or load_state_dict(assign=True) has replaced, so nothing would learn there. "
                "Make it after that: torch.optim.AdamW(plan.parameters(), ...)."
            )
    for learned, model in list(_undriven.items()):
        if id(learned) in ids:
            del _undriven[learned]
        elif not learned.requires_grad and any(id(one) in ids for one in _parameters(model())):
            raise StaleOptimizerError(
                f"optimizer: {type(optimizer).__name__} trains this model, but the learned part of shape "
                f"{tuple(learned.shape)} has been switched off since the plan (requires_grad=False, as get_peft_model "
                "does), so nothing would learn there. Make the plan after that, or choose fl.nothing for it."
            )


def _left_behind(learned: Tensor) -> bool:
    """Whether a plan gave `learned` to modules that all have another Parameter in its place."""
    owners = owners_of(learned)
    return bool(owners) and not any(learned is one for module in owners for one in module._parameters.values())


def _parameters(model: nn.Module | None) -> Iterable[nn.Parameter]:
    return () if model is None else model.parameters()
