"""Watch a training step of a running script from outside, until its optimizers have stepped.

The idea: the watch begins when the script makes an optimizer, or runs a module with parameters; it sleeps until a
parameter is used, and takes each one when it first is, so that models may be made late. When every optimizer has
stepped and the next forward begins, or the script ends, all that was patched is put back, and the models are looked
for: every one that is alive is known to Python's garbage collector.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from frostline.probe.explain.explanation import Explanation
from frostline.probe.explain.optimizer_groups import OptimizerGroups
from frostline.probe.explain.run_trace import RunTrace
from frostline.probe.explain.watched_run import WatchedRun
from frostline.probe.explain.watching import explanations_of, is_compiled
from frostline.probe.script.models import named, outermost_models
from frostline.probe.script.ranks import differences, rank
from frostline.probe.trace.patches import is_traced

_MOST_STEPS = 10  # more of one optimizer, while another one that is alive has not stepped

_OF_HOOKS = r"Using `torch\.compile\(module\)` when there are global hooks"

_watches: weakref.WeakSet[ScriptWatch] = weakref.WeakSet()


class ScriptWatch:
    """Watches one training step of whatever trains in this process.

    Args:
        step: Which step is watched, from 1; those before it run at full speed.
        light: Keep no copy of what learns.
        finished: Called once, when the step is over, with name -> Explanation of each model that is to learn, and with
            a line for each that ran and is not.
    """

    def __init__(self, step: int, light: bool, finished: Callable[[dict[str, Explanation], list[str]], None]) -> None:
        self._step, self._light, self._finished = step, light, finished
        self._run: WatchedRun | None = None
        self._thread = 0
        self._over = False
        self._ran: dict[int, nn.Module] = {}  # held, so that the models are alive when they are looked for
        self._models: list[nn.Module] = []
        self._made: list[weakref.ref[Any]] = []
        self._steps: dict[int, tuple[Any, int]] = {}  # `id` of an optimizer -> it, and how often it has stepped
        self._stack = contextlib.ExitStack()
        for handle in (
            register_module_forward_pre_hook(self._before_forward),
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ):
            self._stack.callback(handle.remove)
        self._stack.callback(self._patch_optimizers())
        self._stack.enter_context(_ignored_warning(_OF_HOOKS))
        _watches.add(self)

    @property
    def is_first(self) -> bool | None:
        """Whether this process is the first of several; None if they have not come together."""
        return None if (number := rank()) is None else number == 0

    def end(self, error: BaseException | None = None) -> None:
        """Stop watching, and give what was found to `finished`, if that has not happened."""
        if self._over:
            return
        found: dict[str, Explanation] = {}
        lines: list[str] = []
        self._leave(error)
        if self._run is not None:
            try:
                found, lines = self._explained(self._run)
                lines += differences(found)
            except Exception as failure:  # ours, whatever it is: the script goes on
                lines = [f"The step could not be explained: {type(failure).__name__}: {failure}"]
        self._run, self._ran, self._models, self._steps = None, {}, [], {}
        self._finished(found, lines)

    def abandon(self) -> None:
        """Stop watching without a word: in a process that was forked off."""
        if not self._over:
            self._leave(None)

    def _leave(self, error: BaseException | None) -> None:
        self._over = True
        self._stack.close()
        run = self._run
        if run is not None and threading.get_ident() == self._thread:
            _with_modes_above(lambda: run.__exit__(None if error is None else type(error), error, None))
        elif run is not None:  # another thread has entered it, and must not be left without
            run.trace.paused = True  # type: ignore[attr-defined]

    # What the script does

    def _patch_optimizers(self) -> Callable[[], None]:
        """Tell of each optimizer that is made; return what takes the patch away."""
        original: Any = Optimizer.__init__

        @functools.wraps(original)
        def init(optimizer: Any, *args: Any, **kwargs: Any) -> None:
            original(optimizer, *args, **kwargs)
            self._note_optimizer(optimizer)

        def remove() -> None:
            if Optimizer.__init__ is init:  # else somebody has patched it since, and calls ours
                Optimizer.__init__ = original  # type: ignore[method-assign]

        Optimizer.__init__ = init  # type: ignore[method-assign, assignment]
        return remove

    def _note_optimizer(self, optimizer: Any) -> None:
        if not self._over:
            self._made.append(weakref.ref(optimizer))
            if self._run is None and self._step == 1:
                self._begin()
            elif self._run is not None:
                self._run.note_optimizer(optimizer)

    def _before_forward(self, module: nn.Module, _: Any) -> None:
        if torch.compiler.is_compiling() or self._over or torch._C._current_graph_task_id() >= 0:
            return  # the last is a checkpoint, in the backward pass
        if self._run is None:
            if self._step > 1 or isinstance(module, torch.fx.GraphModule):  # which compiled code may be running
                return
            if not (torch.is_grad_enabled() or module.training):  # an evaluation
                return
            if not any(parameter.requires_grad for parameter in module.parameters()):
                return
            self._begin()
        if not self._sees_this_thread():
            return
        if self._is_stepped() or self._has_moved_unseen(module):
            return self.end()
        if id(module) not in self._ran:
            self._ran[id(module)] = module
            assert self._run is not None
            self._run.note_module(module)

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        if self._run is None or torch.compiler.is_compiling() or not self._sees_this_thread():
            return None
        if self._is_stepped():
            return self.end()
        self._models = self._models or outermost_models()
        return self._run.before_step(optimizer, args, kwargs)

    def _after_step(self, optimizer: Any, *_: Any) -> None:
        if self._over or torch.compiler.is_compiling():
            return
        steps = self._steps.get(id(optimizer), (None, 0))[1] + 1
        self._steps[id(optimizer)] = optimizer, steps
        if self._run is None:
            if steps >= self._step - 1:
                self._begin()
        elif self._sees_this_thread():
            self._run.after_step(optimizer)

    def _begin(self) -> None:
        if is_traced():  # the script watches by itself
            return
        self._thread = threading.get_ident()
        with torch.inference_mode(False):  # the first forward may be under it
            self._run = WatchedRun(self._light)
            for optimizer in self._optimizers():
                self._run.note_optimizer(optimizer)
            _with_modes_above(self._run.__enter__)

    def _sees_this_thread(self) -> bool:
        """Return whether what runs now is seen: in this thread, and not by compiled code, which puts modes aside."""
        if self._run is None or not is_traced(self._run.trace):
            return False
        modes = torch.overrides._get_current_function_mode_stack()
        return threading.get_ident() != self._thread or any(mode is self._run.trace for mode in modes)

    def _optimizers(self) -> list[Any]:
        """Return the optimizers that are alive, or have stepped; of a wrapper the one inside it, which steps."""
        alive = [optimizer for made in self._made if (optimizer := made()) is not None]
        every = {id(each): each for each in (*alive, *(optimizer for optimizer, _ in self._steps.values()))}
        return [
            each for each in every.values() if not any(isinstance(inner, Optimizer) for inner in vars(each).values())
        ]

    def _is_stepped(self) -> bool:
        """Return whether every optimizer that is alive has stepped often enough, or one of them much more often."""
        steps = {key: count for key, (_, count) in self._steps.items()}
        if max(steps.values(), default=0) < self._step:
            return False
        return max(steps.values()) >= self._step + _MOST_STEPS or all(
            steps.get(id(optimizer), 0) >= self._step for optimizer in self._optimizers()
        )

    def _has_moved_unseen(self, module: nn.Module) -> bool:
        """Return whether, where the forward begins anew, a step has come of which no hook has told."""
        anew = module is next(iter(self._ran.values()), None)
        return (
            anew and not self._steps and self._run is not None and self._run.passes > 0 and self._run.is_moved_unseen()
        )

    # What is said of it

    def _explained(self, run: WatchedRun) -> tuple[dict[str, Explanation], list[str]]:
        if not run.is_of_use:
            return {}, [
                "Nothing is explained: no module has run a backward pass, and no optimizer was given gradients."
            ]
        groups = OptimizerGroups(self._optimizers() or None)
        held = {id(tensor) for tensor in groups.tensors}
        stepped = {
            id(tensor)
            for optimizer, _ in self._steps.values()
            for group in optimizer.param_groups
            for tensor in group["params"]
        }
        trained: list[nn.Module] = []
        others: dict[int, str] = {}
        for model in (models := outermost_models()):
            tensors = {id(parameter) for parameter in model.parameters()}
            if tensors & stepped or any(run.has_gradient(tensor) for tensor in tensors):
                trained.append(model)
            elif any(id(module) in self._ran for module in model.modules()):
                others[id(model)] = "its optimizer has not stepped" if tensors & held else "no optimizer holds it"
        if not trained:
            trained, others = [model for model in models if id(model) in others], {}
        names = named(models)
        lines = [
            f"{name} is not explained: it ran, but no gradient came to it, and {others[id(model)]}."
            for name, model in names.items()
            if id(model) in others
        ]
        shown = {name: model for name, model in names.items() if model in trained}
        compiled = any(map(is_compiled, shown.values()))
        return (explanations_of(run, shown, groups, compiled) if shown else {}), lines


def _with_modes_above(enter_or_leave: Callable[[], object]) -> None:
    """Enter or leave modes below those that the script has entered, so that each leaves its own."""
    stack: list[Any] = []
    above = torch.overrides._get_current_function_mode_stack()
    own = [index for index, mode in enumerate(above) if isinstance(mode, RunTrace)]
    keep = own[-1] + 1 if own else 0
    while torch._C._len_torch_function_stack() > keep:
        stack.append(torch.overrides._pop_mode())
    try:
        enter_or_leave()
    finally:
        for mode in reversed(stack):
            torch.overrides._push_mode(mode)


@contextlib.contextmanager
def _ignored_warning(message: str) -> Iterator[None]:
    """Ignore a warning that is true of the watch, not of the script."""
    warnings.filterwarnings("ignore", message)
    ours = warnings.filters[0]
    try:
        yield
    finally:
        if ours in warnings.filters:
            cast("list[Any]", warnings.filters).remove(ours)


def _forget_in_child() -> None:
    for watch in list(_watches):
        watch.abandon()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_forget_in_child)
