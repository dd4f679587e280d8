"""Find the models and optimizers of a running script by themselves, and watch until its optimizers have stepped.

The idea: a global hook waits for the first module with parameters that runs. Then every model that is alive, and every
optimizer, is known to Python's garbage collector; all of them are watched as one, and each that took part gets a table.
When the step is over and the next forward begins, or the script ends, all hooks are gone.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from frostline.probe.explain.explanation import Explanation
from frostline.probe.explain.watching import Watching
from frostline.probe.inputs import unwrapped

_RESCAN = 1.0  # seconds between two searches for an optimizer


class ScriptWatch:
    """Watches one training step of whatever runs in the thread that runs a module first.

    Args:
        step: Which step of the optimizers is watched last, from 1; those before it are watched too.
        finished: Called once, with the explanations, when the step is over.

    Attributes:
        explanations: Name of a model -> its Explanation; empty until the step is over.
    """

    def __init__(self, step: int, finished: Callable[[dict[str, Explanation]], None]) -> None:
        self._step, self._finished = step, finished
        self.explanations: dict[str, Explanation] = {}
        self.names: dict[int, str] = {}
        self._watching: Watching | None = None
        self._roots: list[nn.Module] = []
        self._optimizers: list[Any] = []
        self._ran: set[int] = set()
        self._steps: dict[int, int] = {}
        self._thread = 0
        self._scanned = 0.0
        self._over = False
        self._handles = [
            register_module_forward_pre_hook(self._before_forward),
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]

    def end(self, error: BaseException | None = None) -> None:
        """Stop watching, and give the explanations to `finished`, if that has not happened."""
        if self._over:
            return
        self.remove()
        if self._watching is not None:
            self._leave(error)
            self.explanations = self._of_each_model(self._watching.explanation)
        self._finished(self.explanations)

    def remove(self) -> None:
        """Stop waiting for a module to run."""
        self._over = True
        for handle in self._handles:
            handle.remove()

    def _before_forward(self, module: nn.Module, _: Any) -> None:
        if self._over or self._thread not in (0, threading.get_ident()):
            return
        if torch._C._current_graph_task_id() >= 0:  # a checkpoint, in the backward pass
            return
        if self._watching is not None and self._is_stepped():
            return self.end()
        if self._watching is None or self._is_to_be_searched_again():
            if not any(parameter.requires_grad for parameter in module.parameters()):
                return
            if not (torch.is_grad_enabled() or module.training):  # an evaluation
                return
            self._begin()
        self._ran.add(id(module))

    def _is_to_be_searched_again(self) -> bool:
        """Return whether the models ran without an optimizer so far: a forward before the optimizer is made."""
        assert self._watching is not None
        waiting = not self._optimizers and not self._watching.has_seen_a_pass
        return waiting and time.monotonic() - self._scanned > _RESCAN

    def _before_step(self, optimizer: Any, *_: Any) -> None:
        if self._steps.get(id(optimizer), 0) >= self._step and threading.get_ident() == self._thread:
            self.end()

    def _after_step(self, optimizer: Any, *_: Any) -> None:
        if self._watching is not None and threading.get_ident() == self._thread:
            self._steps[id(optimizer)] = self._steps.get(id(optimizer), 0) + 1

    def _is_stepped(self) -> bool:
        """Return whether every optimizer of what ran has stepped often enough."""
        ran = {id(parameter) for root in self._that_took_part() for parameter in root.parameters()}
        due = [
            optimizer
            for optimizer in self._optimizers
            if any(id(parameter) in ran for group in optimizer.param_groups for parameter in group["params"])
        ]
        return bool(due) and all(self._steps.get(id(optimizer), 0) >= self._step for optimizer in due)

    def _begin(self) -> None:
        if self._watching is not None:
            self._leave(None)
        self._thread, self._scanned = threading.get_ident(), time.monotonic()
        objects = gc.get_objects()
        # By their types: asked for its `__class__`, somebody's lazy object may import a library, or warn.
        modules = [each for each in objects if issubclass(type(each), nn.Module) and "_modules" in vars(each)]
        inner = {id(child) for module in modules for child in module._modules.values() if child is not None}
        roots = [unwrapped(module) for module in modules if id(module) not in inner]
        self._roots = [root for root in dict.fromkeys(roots) if any(True for _ in root.parameters())]
        # A wrapper has the groups of the optimizer inside it, which is the one that steps.
        self._optimizers = [
            each
            for each in objects
            if issubclass(type(each), Optimizer) and not isinstance(getattr(each, "optimizer", None), Optimizer)
        ]
        watching = Watching(_together(self._roots), self._optimizers or None)
        with torch.inference_mode(False):  # the first forward may be under it; what is copied here must not be
            _with_modes_above(watching.__enter__)
        self._watching = watching

    def _leave(self, error: BaseException | None) -> None:
        assert self._watching is not None
        watching = self._watching
        _with_modes_above(lambda: watching.__exit__(None if error is None else type(error), error, None))

    def _that_took_part(self) -> list[nn.Module]:
        """Return the models that ran, or that an optimizer stepped."""
        stepped = {
            id(parameter)
            for optimizer in self._optimizers
            if id(optimizer) in self._steps
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        return [
            root
            for root in self._roots
            if any(id(module) in self._ran for module in root.modules())
            or any(id(parameter) in stepped for parameter in root.parameters())
        ]

    def _of_each_model(self, whole: Explanation) -> dict[str, Explanation]:
        shown = self._that_took_part()
        if len(self._roots) == 1:
            return {_name(self._roots[0]): whole} if shown else {}
        found: dict[str, Explanation] = {}
        for root in shown:
            part = whole.under(f"{self._roots.index(root)}.")
            name, number = _name(root), 1
            while name in found:
                number += 1
                name = f"{_name(root)} ({number})"
            found[name] = part
        return found


def _together(roots: list[nn.Module]) -> nn.Module:
    return roots[0] if len(roots) == 1 else nn.ModuleList(roots)


def _name(root: nn.Module) -> str:
    """Return the name that the script has for a model, with its class; or the class alone."""
    import __main__

    kind = type(root).__name__
    names = [
        name for name, value in vars(__main__).items() if isinstance(value, nn.Module) and unwrapped(value) is root
    ]
    return f"{names[0]}: {kind}" if names else kind


def _with_modes_above(enter_or_leave: Callable[[], object]) -> None:
    """Enter or leave modes below those that the script has entered, so that each leaves its own."""
    stack: list[Any] = []
    above = torch.overrides._get_current_function_mode_stack()
    from frostline.probe.explain.run_trace import RunTrace

    own = [index for index, mode in enumerate(above) if isinstance(mode, RunTrace)]
    keep = own[-1] + 1 if own else 0
    while torch._C._len_torch_function_stack() > keep:
        stack.append(torch.overrides._pop_mode())
    try:
        enter_or_leave()
    finally:
        for mode in reversed(stack):
            torch.overrides._push_mode(mode)
