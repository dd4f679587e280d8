"""Everything that a pass and a step can change, remembered and put back.

    with kept([model], function=loss_fn):
        loss_fn().backward()              # after the block it is as if this had never run

    with kept([model], function=loss_fn, optimizers=[optimizer]) as before:
        loss_fn().backward()
        optimizer.step()
        moved = changed(before[weight], weight)

Kept, also when the block raises:
    random numbers   torch's generators (CPU, every CUDA device in use), Python's, numpy's; generators that are listed,
                     that `function` reaches (reach.py), or that a torch function is seen to use
    modules          those given, those `function` reaches, those called in the block, and all their submodules:
                     mode, hooks, buffers and other tensors (bits, memory, version counter), attributes, lists and dicts
    gradients        `.grad` is out of sight in the block (None) and comes back, the same object with the same bits;
                     so are the hooks that run when it is accumulated, unless they are asked for
    flags, hooks     `requires_grad` of parameters and the hooks registered on them
    optimizers       what they hold and keep: parameters, state made at the first step, counters, options in
                     `param_groups`, an attribute that a scheduler looks at, a base optimizer inside a wrapper

A module that averages over processes (DDP) runs its inner module alone in the block: no communication, and its reducer
takes no notice. Compiled code runs as far as it is compiled, and eagerly where it would compile anew, so that nothing
of the block is compiled in.

What cannot be put back: state that lives in none of these, such as an iterator that the block has advanced, or the
inside of a module's attribute that is an object of a class of one's own.
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

from frostline.probe.restore.reachable import reach
from frostline.probe.restore.rng import undrawn
from frostline.probe.restore.snapshot import Before


@contextlib.contextmanager
def kept(
    modules: Iterable[nn.Module] = (),
    *,
    function: object = None,
    tensors: Iterable[Tensor] = (),
    optimizers: Iterable[object] = (),
    generators: Iterable[Any] = (),
    written: Iterable[Tensor] = (),
    accumulation_hooks: bool = False,
) -> Iterator[Before]:
    """Put back, when the block ends or raises, everything that a pass or a step in it changed.

    Args:
        modules: Modules that the block may change, with their submodules. Those it calls are found without this.
        function: What the block will call; what it reaches is kept too. Any object that holds things will do.
        tensors: Tensors outside of modules whose `.grad` and `requires_grad` are kept.
        optimizers: Objects with `param_groups` and `step`, which the block may step.
        generators: torch.Generator, numpy's Generator or RandomState, Python's Random, that cannot be seen otherwise.
        written: Parameters whose values the block may change, held by an optimizer or not.
        accumulation_hooks: Let those of the parameters run: some mask `.grad`, some step an optimizer.

    Returns:
        A context manager that yields the values before: `before[tensor]` for each of `written`, each tensor that an
        optimizer holds and each buffer.

    Raises:
        ProbeError: A module is lazy, so its first call would give it its shape; or, at the end, a parameter that is
            neither `written` nor an optimizer's was written to in the block.
        TypeError: Something in `generators` is no generator.

    Cost: a copy of the buffers, of `written` and of what the optimizers keep, for the length of the block. At the end
        nothing is written to a tensor in CPU memory that has the same bits, so read-only memory is safe.
    """
    modules = list(modules)
    reached = reach(function, *modules)
    before = Before(accumulation_hooks)
    with contextlib.ExitStack() as stack:
        stack.callback(before.put_back)
        for tensor in written:
            before.tensor(tensor, written=True)
        for optimizer in optimizers:
            before.holder(optimizer)
        for module in (*modules, *reached.modules):
            before.module(module)
        for tensor in (*tensors, *reached.leaves):
            before.tensor(tensor)
        for generator in (*generators, *reached.generators):
            before.generator(generator)
        stack.enter_context(undrawn())
        stack.enter_context(stance("eager_on_recompile"))
        if not reached.compiled:  # compiled code runs as it was compiled: under no mode, without global hooks
            stack.callback(register_module_forward_pre_hook(lambda module, _: before.module(module)).remove)
            stack.enter_context(_Watch(before))
        yield before
    before.refuse_writes()


class _Watch(TorchFunctionMode):
    """Notes every torch.Generator at its first use, before it is used."""

    def __init__(self, before: Before) -> None:
        super().__init__()
        self._before = before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()):
            if type(value) is torch.Generator:  # isinstance is ten times as slow
                self._before.generator(value)
        return func(*args, **kwargs)


def stance(name: Literal["eager_on_recompile", "force_eager"]) -> contextlib.AbstractContextManager[Any]:
    """Run compiled code eagerly in the block: where it would compile anew, or all of it (then its hooks run)."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes a second
        return contextlib.nullcontext()
    taken: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance(name)
    return taken
