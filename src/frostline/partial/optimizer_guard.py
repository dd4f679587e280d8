"""Detect stale optimizers: raise before `step()` if the plan has changed.

An optimizer keeps the Parameters that it was made with. Made before `train_only`, it holds the frozen part of a partial
tensor and not the learned one: training would continue, and silently nothing would learn there. A hook that torch runs
before every step of every optimizer checks for that, for learned parts of an earlier plan, and for learned parts of
which other code has set `requires_grad=False` since.

The hook runs for every optimizer of the process. So what an optimizer holds of any plan is looked up once, and again
only after a plan or its param groups have changed; for one that holds nothing the hook costs two microseconds.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary, WeakTensorKeyDictionary

from frostline.errors import StaleOptimizerError

_FIX = "Make it after train_only: torch.optim.AdamW(plan.parameters(), ...); or update it with plan.carry(optimizer)."

# What plans did to tensors. Weak references, so that nothing here keeps a model or its memory alive.
_learned_of: Any = WeakTensorKeyDictionary()  # frozen part -> weak reference to its learned part
_owners_of: Any = WeakTensorKeyDictionary()  # learned part -> the modules that have it
_undriven: Any = WeakTensorKeyDictionary()  # learned part that no optimizer has stepped -> weak reference to its model
_replaced_parts: Any = WeakTensorKeyDictionary()  # learned part of an earlier plan -> weak reference to tensor, index

_holdings: Any = WeakIdKeyDictionary()  # optimizer -> its _Holding; by identity: a subclass may not be hashable
_changes = 0  # how often the dictionaries of tensors have changed
_LOCK = threading.RLock()  # models may be planned and trained in several threads; iterating the dictionaries needs it


def watch(frozen: Tensor, learned: Tensor, owners: Iterable[nn.Module], model: nn.Module) -> None:
    """From now on, raise before the step of an optimizer that has `frozen` but not `learned`.

    `owners` are the modules that have both; `model` is the whole model that the plan is for.
    """
    global _changes
    _check_before_every_step()
    with _LOCK:
        _owners_of[learned] = weakref.WeakSet(owners)
        _learned_of[frozen] = weakref.ref(learned)
        _undriven[learned] = weakref.ref(model)
        _changes += 1


def adopt(frozen: Tensor, learned: Tensor, owner: nn.Module) -> None:
    """Do for the parts of a copied or converted module what `watch` does; whether they are stepped is not watched."""
    global _changes
    with _LOCK:
        if owner not in owners_of(learned):
            _owners_of[learned] = weakref.WeakSet([*owners_of(learned), owner])
            _learned_of[frozen] = weakref.ref(learned)
            _changes += 1


def mark_split(frozen: Tensor, shards: Tensor) -> None:
    """Note that tensor parallelism has put `shards`, a DTensor, in the place of `frozen`."""
    global _changes
    with _LOCK:
        if frozen in _learned_of:
            _learned_of[shards] = _learned_of[frozen]
            _changes += 1


def owners_of(learned: Tensor) -> set[nn.Module]:
    """Return the modules to which a plan gave `learned` and that still exist; none for the part of a copied model."""
    with _LOCK:
        return set(_owners_of.get(learned, ()))


def frozen_of(learned: Tensor) -> Tensor | None:
    """Return the frozen part to which a plan gave `learned`; None if there is none any more."""
    with _LOCK:
        return next((frozen for frozen, reference in _learned_of.items() if reference() is learned), None)


def parts_like(learned: Tensor) -> list[Tensor]:
    """Return the learned parts of all models that have the shape and the dtype of `learned`."""
    with _LOCK:
        return [part for part in _owners_of if (part.shape, part.dtype) == (learned.shape, learned.dtype)]


def mark_replaced(frozen: Tensor, learned: Tensor, index: tuple[Tensor, ...]) -> None:
    """Note that `learned` was merged into `frozen`, at `index`, and that no module uses it any more."""
    global _changes
    with _LOCK:
        _learned_of.pop(frozen, None)
        _undriven.pop(learned, None)
        _replaced_parts[learned] = weakref.ref(frozen), index
        _changes += 1


def noted(tensors: Iterable[Tensor]) -> Callable[[], None]:
    """Return a function that makes what is noted of `tensors` the same again as it is now."""
    dictionaries = (_learned_of, _owners_of, _undriven, _replaced_parts)
    with _LOCK:
        before = [(notes, tensor, notes.get(tensor)) for notes in dictionaries for tensor in tensors]

    def restore() -> None:
        global _changes
        with _LOCK:
            for notes, tensor, value in before:
                if value is None:
                    notes.pop(tensor, None)
                else:
                    notes[tensor] = value
            _changes += 1

    return restore


def replaced_part(learned: Tensor) -> tuple[Tensor | None, tuple[Tensor, ...]] | None:
    """Return the tensor that `learned` was a part of under an earlier plan, and its index there.

    None if it was not. The tensor is None if it no longer exists.
    """
    if learned not in _replaced_parts:
        return None
    frozen, index = _replaced_parts[learned]
    return frozen(), index


def is_stale(tensor: Tensor) -> bool:
    """Return whether a plan has replaced `tensor`, a Parameter or a learned part, by other parts."""
    return tensor in _replaced_parts or tensor in _learned_of


@functools.cache
def _check_before_every_step() -> None:
    register_optimizer_step_pre_hook(_eagerly(_check))
    register_optimizer_step_post_hook(_eagerly(_bring_up_to_date))


def _eagerly(hook: Callable[..., None]) -> Callable[..., None]:
    """Return `hook`, run outside the graph of a compiled `step`; `disable` is slow to import, so not before that."""

    def run(*args: Any) -> None:
        (torch.compiler.disable(hook) if torch.compiler.is_compiling() else hook)(*args)

    return run


@dataclass(frozen=True)
class _Holding:
    """What one optimizer holds of any plan.

    Attributes:
        made_of: What it was looked up from: `_changes`, then id and length of the `params` of each of its groups.
        parts: The learned parts that it holds, each with the modules that a plan gave it to.
        modules: Every module that has one of the parts, once.
        undriven: Learned parts that no optimizer has stepped yet, of models of which it holds parameters.
    """

    made_of: tuple[int, ...]
    parts: list[tuple[weakref.ref[Tensor], list[weakref.ref[nn.Module]]]]
    modules: list[weakref.ref[Any]]
    undriven: list[weakref.ref[Tensor]]

    def around_step(self) -> None:
        """Let the modules bring their parts up to date."""
        for reference in self.modules:
            if (module := reference()) is not None:
                module._around_step()


def _made_of(optimizer: Optimizer) -> tuple[int, ...]:
    lists = [group["params"] for group in optimizer.param_groups]
    return (_changes, *map(id, lists), *map(len, lists))


def _check(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Before a step, raise if nothing would learn; take over what was written to the frozen parts."""
    holding = _held_now(optimizer)
    if holding.parts or holding.undriven:
        try:
            _check_now(optimizer, holding)
        except StaleOptimizerError:
            _holdings.pop(optimizer, None)  # looked up again: its parameters may be replaced in place
            raise
        holding.around_step()


def _bring_up_to_date(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """After a step, let the modules copy what learned into the memory of the frozen parts."""
    holding = _held_now(optimizer)  # again: a closure may have run a copied model for the first time
    for part, _ in holding.parts:
        if (learned := part()) is not None:
            torch.autograd.graph.increment_version(learned)  # fused optimizers do not count their writes
    holding.around_step()


def _held_now(optimizer: Optimizer) -> _Holding:
    holding: _Holding | None = _holdings.get(optimizer)
    if holding is None or holding.made_of != _made_of(optimizer):
        with _LOCK:
            holding = _holdings[optimizer] = _held_by(optimizer)
    return holding


def _held_by(optimizer: Optimizer) -> _Holding:
    """Look up what the optimizer holds of any plan; raise if it was made for another one."""
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    ids = {id(parameter) for parameter in held}
    for parameter in held:
        learned = _learned_of[parameter]() if parameter in _learned_of else None
        if learned is not None and id(learned) not in ids:
            raise StaleOptimizerError(
                f"optimizer: {type(optimizer).__name__} holds the frozen part of a partial tensor of shape "
                f"{tuple(parameter.shape)} but not its learned part, so nothing would learn there. {_FIX}"
            )
        if parameter in _replaced_parts:
            raise StaleOptimizerError(
                f"optimizer: {type(optimizer).__name__} holds a learned part of shape {tuple(parameter.shape)} from "
                f"an earlier plan, which no module uses any more. {_FIX}"
            )
    parts = [(weakref.ref(p), [weakref.ref(module) for module in owners_of(p)]) for p in held if p in _owners_of]
    undriven = [
        weakref.ref(learned)
        for learned, model in list(_undriven.items())
        if id(learned) in ids or any(id(parameter) in ids for parameter in _parameters(model()))
    ]
    modules = {id(owner()): owner for _, owners in parts for owner in owners}
    return _Holding(_made_of(optimizer), parts, list(modules.values()), undriven)


def _check_now(optimizer: Optimizer, holding: _Holding) -> None:
    """Raise if other code has changed since then what the optimizer would do."""
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if isinstance(optimizer, torch.optim.LBFGS) and not all(parameter.requires_grad for parameter in held):
        raise StaleOptimizerError(
            "optimizer: LBFGS writes to every tensor that it holds: where one is frozen, -0.0 would become 0.0. "
            "Give it what learns alone: torch.optim.LBFGS(plan.parameters(), ...)."
        )
    for part, owners in holding.parts:
        learned, modules = part(), [module for owner in owners if (module := owner()) is not None]
        if learned is not None and modules and not any(_has(module, learned) for module in modules):
            raise StaleOptimizerError(
                f"optimizer: {type(optimizer).__name__} holds a learned part of shape {tuple(learned.shape)} that "
                "fully_shard or load_state_dict(assign=True) has replaced, so nothing would learn there. "
                "Make it after that: torch.optim.AdamW(plan.parameters(), ...)."
            )
    for reference in list(holding.undriven):
        learned = reference()
        if learned is None or learned not in _undriven:
            holding.undriven.remove(reference)
        elif any(learned is parameter for parameter in held):
            with _LOCK:
                _undriven.pop(learned, None)
        elif not learned.requires_grad:
            raise StaleOptimizerError(
                f"optimizer: {type(optimizer).__name__} trains this model, but the learned part of shape "
                f"{tuple(learned.shape)} has been switched off since the plan (requires_grad=False, as get_peft_model "
                "does), so nothing would learn there. Make the plan after that, or choose fl.nothing for it."
            )


def _has(module: nn.Module, learned: Tensor) -> bool:
    return any(parameter is learned for parameter in module._parameters.values())


def _parameters(model: nn.Module | None) -> Iterator[nn.Parameter | None]:
    for module in () if model is None else model.modules():
        yield from list(module._parameters.values())  # a list: a plan in another thread may add a learned part
