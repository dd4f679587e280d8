"""Restore everything that a pass and a step of the optimizers modify.

    with restored([model], function=loss_fn):
        loss_fn().backward()              # after the block it is as if this had never run

    with restored([model], function=loss_fn, optimizers=[optimizer]) as before:
        loss_fn().backward()
        optimizer.step()
        moved = changed(before[weight], weight)

Restored, also when the block raises:
    random numbers   torch's generators (CPU, every CUDA device in use), Python's, numpy's; generators that are listed,
                     that `function` can reach (reachable.py), or that a torch function is seen to use
    modules          those given, those `function` can reach, those called in the block, and all their submodules:
                     mode, hooks, buffers and other tensors (bits, memory, version counter), attributes, lists and dicts
    gradients        in the block `.grad` is None; afterwards it is the same tensor with the same bits. The hooks that
                     run when it is accumulated are disabled, unless they are asked for
    parameters       values, if a torch function writes to them; `requires_grad` and the hooks registered on them
    optimizers       everything in them: parameters, state created by the first step, counters, options in
                     `param_groups`, an attribute that a scheduler reads, a base optimizer inside a wrapper

A DistributedDataParallel only runs its inner module in the block: no communication, and its reducer stays unaware.
Compiled code runs as far as it is compiled, and eagerly where it would be recompiled, so that no graph is compiled for
the block.

The block acts on the thread that runs it alone: what another thread does meanwhile to its own modules stays. Only the
global random generators are shared by all threads, so numbers that another draws meanwhile will be drawn again.

Not restored: what is stored in none of these, such as an iterator that the block advances, or the inside of a module's
attribute that is an object of the user's own class.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from frostline.probe.restore.reachable import reachable
from frostline.probe.restore.rng import rng_restored
from frostline.probe.restore.snapshot import Snapshot
from frostline.probe.restore.torch_calls import name_of, targets_of, tensors_in

# Whoever has the memory may write to it unseen. A `max_norm` has the rows that are looked up rescaled.
_EXPOSING = {"numpy", "__array__", "__dlpack__", "data_ptr", "untyped_storage", "storage", "set_"}


@contextlib.contextmanager
def restored(
    modules: Iterable[nn.Module] = (),
    *,
    function: object = None,
    tensors: Iterable[Tensor] = (),
    optimizers: Iterable[object] = (),
    generators: Iterable[Any] = (),
    written: Iterable[Tensor] = (),
    accumulation_hooks: bool = False,
) -> Iterator[Snapshot]:
    """Restore, when the block ends or raises, everything that a pass or a step in it modified.

    Args:
        modules: Modules that the block may modify, with their submodules. Those it calls are found without this.
        function: What the block will call; what it can reach is restored too. Any object that refers to others will do.
        tensors: Tensors outside of modules whose `.grad` and `requires_grad` are restored.
        optimizers: Objects with `param_groups` and `step`, which the block may step.
        generators: torch.Generator, numpy's Generator or RandomState, Python's Random, that are not found otherwise.
        written: Parameters whose values the block may modify, in an optimizer or not.
        accumulation_hooks: Keep the parameters' post-accumulate-grad hooks active (default: disabled).

    Returns:
        A context manager that yields the values before: `before[tensor]` for each of `written`, each tensor in an
        optimizer and each buffer.

    Raises:
        ProbeError: A module is lazy, so its first call would give it its shape; or, at the end, a parameter that is
            neither in `written` nor in an optimizer was written to in the block, by other code than torch functions in
            this thread.
        TypeError: Something in `generators` is not a random generator.

    Cost: a copy of the buffers, of `written`, of the tensors in the optimizers, of the parameters that the block writes
        to, and of all parameters if compiled code can be reached, as long as the block runs. At the end a tensor in CPU
        memory that has the same bits is not written to, so read-only memory is safe.
    """
    modules = list(modules)
    found = reachable(function, *modules)
    before = Snapshot(accumulation_hooks, found.compiled)
    with contextlib.ExitStack() as stack:
        stack.callback(before.restore)
        # What is added first decides: a parameter that may be written to is copied, before its module is added and
        # would only note its version.
        for tensor in written:
            before.add_tensor(tensor, written=True)
        for optimizer in optimizers:
            before.add_contents(optimizer)
        for module in (*modules, *found.modules):
            before.add_module(module)
        for tensor in (*tensors, *found.leaves):
            before.add_tensor(tensor)
        for generator in (*generators, *found.generators):
            before.add_generator(generator)
        stack.enter_context(rng_restored())
        stack.callback(torch.clear_autocast_cache)
        torch.clear_autocast_cache()  # casts of a weight are kept for an autocast block: those of the block are its own
        if found.compiled:
            stack.enter_context(compile_stance("eager_on_recompile"))
        else:  # a mode or a global hook fails the guards of compiled code, so it would run eagerly
            stack.callback(register_module_forward_pre_hook(_adding_modules(before)).remove)
            stack.enter_context(_SaveBeforeUse(before))
        yield before
    before.check_unwritten()


def _adding_modules(before: Snapshot) -> Callable[[nn.Module, Any], None]:
    """Return a hook for the modules called in this thread alone: those of others are not to be restored."""
    thread = threading.get_ident()

    def add(module: nn.Module, _: Any) -> None:
        if threading.get_ident() == thread:
            before.add_module(module)

    return add


class _SaveBeforeUse(TorchFunctionMode):
    """Adds what a torch function is about to use or write to a snapshot: generators, and parameters."""

    def __init__(self, before: Snapshot) -> None:
        super().__init__()
        self._before = before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():  # inside of `torch.cond`, which is compiled wherever it runs
            return func(*args, **kwargs)
        for value in (*args, *kwargs.values()):
            if type(value) is torch.Generator:  # isinstance is ten times as slow
                self._before.add_generator(value)
        name = name_of(func)
        for target in tensors_in(args[:1]) if name in _EXPOSING else targets_of(name, args, kwargs):
            self._before.save_before_write(target)
        if name == ".data" and not self._before.knows(
            args[0]
        ):  # of a module that was not found; an alias of it is lost
            self._before.save_before_write(args[0])
        return func(*args, **kwargs)


def compile_stance(name: Literal["eager_on_recompile", "force_eager"]) -> contextlib.AbstractContextManager[Any]:
    """Run compiled code eagerly in the block: only where it would be recompiled, or all of it (then hooks run)."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes a second
        return contextlib.nullcontext()
    return _stance(name)


@contextlib.contextmanager
def _stance(name: str) -> Iterator[None]:
    # There is one stance for all threads. While several blocks overlap, the strictest of theirs holds; when the last of
    # them ends, in whatever order, the user's own is back.
    with _stances_lock:
        _stances.append(name)
        if len(_stances) == 1:
            _users_stance.append(torch.compiler.set_stance(name))  # which remembers the one before
        else:
            torch.compiler.set_stance(max(_stances))  # "force_eager" comes last in the alphabet
    try:
        yield
    finally:
        with _stances_lock:
            _stances.remove(name)
            if _stances:
                torch.compiler.set_stance(max(_stances))
            else:
                _users_stance.pop().__exit__(None, None, None)


_stances: list[str] = []
_users_stance: list[Any] = []
_stances_lock = threading.Lock()
