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
    parameters       `requires_grad` and the hooks registered on them
    optimizers       everything in them: parameters, state created by the first step, counters, options in
                     `param_groups`, an attribute that a scheduler reads, a base optimizer inside a wrapper

A DistributedDataParallel only runs its inner module in the block: no communication, and its reducer stays unaware.
Compiled code runs as far as it is compiled, and eagerly where it would be recompiled, so that no graph is compiled for
the block.

Not restored: what is stored in none of these, such as an iterator that the block advances, or the inside of a module's
attribute that is an object of the user's own class.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from frostline.probe.restore.reachable import reachable
from frostline.probe.restore.rng import rng_restored
from frostline.probe.restore.snapshot import Snapshot


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
            neither in `written` nor in an optimizer was written to in the block.
        TypeError: Something in `generators` is not a random generator.

    Cost: a copy of the buffers, of `written` and of the tensors in the optimizers, as long as the block runs. At the
        end a tensor in CPU memory that has the same bits is not written to, so read-only memory is safe.
    """
    modules = list(modules)
    found = reachable(function, *modules)
    before = Snapshot(accumulation_hooks)
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
        stack.enter_context(compile_stance("eager_on_recompile"))
        if not found.compiled:  # a mode or a global hook fails the guards of compiled code, so it would run eagerly
            stack.callback(register_module_forward_pre_hook(lambda module, _: before.add_module(module)).remove)
            stack.enter_context(_AddGenerators(before))
        yield before
    before.check_unwritten()


class _AddGenerators(TorchFunctionMode):
    """Adds every torch.Generator that is passed to a torch function to a snapshot, before the function runs."""

    def __init__(self, before: Snapshot) -> None:
        super().__init__()
        self._before = before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()):
            if type(value) is torch.Generator:  # isinstance is ten times as slow
                self._before.add_generator(value)
        return func(*args, **kwargs)


def compile_stance(name: Literal["eager_on_recompile", "force_eager"]) -> contextlib.AbstractContextManager[Any]:
    """Run compiled code eagerly in the block: only where it would be recompiled, or all of it (then hooks run)."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes a second
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance(name)
    return stance
