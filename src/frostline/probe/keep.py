"""Everything that a forward and a backward pass can change, remembered and put back.

    with kept([model], function=loss_fn):
        loss_fn().backward()              # after the block it is as if this had never run

Kept, also when the block raises:
    random numbers   torch's generators (CPU, every CUDA device in use), Python's, numpy's; generators that are listed,
                     that `function` reaches (reach.py), or that a torch function is seen to use
    modules          those given, those `function` reaches, those called in the block, and all their submodules:
                     mode, hooks, buffers and other tensors (bits, memory, version counter), attributes, lists and dicts
    gradients        `.grad` is out of sight in the block (None) and comes back, the same object with the same bits;
                     so are the hooks that run when it is accumulated, unless they are asked for
    flags, hooks     `requires_grad` of parameters and the hooks registered on them

Version counters matter: a buffer that is written and put back has its old bits but a new count, and the backward of a
step that is under way would refuse it. A module that averages over processes (DDP) runs its inner module alone in the
block: no communication, and its reducer takes no notice. Compiled code runs as far as it is compiled, and eagerly where
it would compile anew, so that nothing of the block is compiled in.

What cannot be put back: state that lives in neither of these, such as an iterator that the block has advanced, or the
inside of an attribute that is an object of a class of one's own.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from frostline.errors import ProbeError
from frostline.partial.tensor import PartialTensor, PartialView
from frostline.probe.reach import MOST_ITEMS, reach
from frostline.probe.step import bits

_CONTAINERS = {dict, OrderedDict, defaultdict, set, list, deque}  # no subclass: theirs may refuse to be refilled


@contextlib.contextmanager
def kept(
    modules: Iterable[nn.Module] = (),
    *,
    function: object = None,
    tensors: Iterable[Tensor] = (),
    generators: Iterable[Any] = (),
    accumulation_hooks: bool = False,
) -> Iterator[None]:
    """Put back, when the block ends or raises, everything that a pass in it changed.

    Args:
        modules: Modules that the block may change, with their submodules. Those it calls are found without this.
        function: What the block will call; what it reaches is kept too. Any object that holds things will do.
        tensors: Tensors outside of modules whose `.grad` and `requires_grad` are kept.
        generators: torch.Generator, numpy's Generator or RandomState, Python's Random, that cannot be seen otherwise.
        accumulation_hooks: Let those of the parameters run: some mask `.grad`, some step an optimizer.

    Raises:
        ProbeError: A module is lazy, so its first call would give it its shape; or, at the end, a parameter was
            written to in the block.
        TypeError: Something in `generators` is no generator.

    Cost: a copy of the buffers, for the length of the block.
    """
    modules = list(modules)
    reached = reach(function, *modules)
    memory = _Memory(accumulation_hooks)
    with contextlib.ExitStack() as stack:
        stack.callback(memory.put_back)
        for module in (*modules, *reached.modules):
            memory.module(module)
        for tensor in (*tensors, *reached.leaves):
            memory.tensor(tensor)
        for generator in (*generators, *reached.generators):
            memory.generator(generator)
        stack.enter_context(_random_numbers())
        stack.enter_context(_eager_where_not_compiled())
        if not reached.compiled:  # compiled code runs as it was compiled: under no mode, without global hooks
            stack.callback(register_module_forward_pre_hook(lambda module, _: memory.module(module)).remove)
            stack.enter_context(_Watch(memory))
        yield
    memory.refuse_writes()


class _Memory:
    """What was remembered so far: each thing as it was when it was first seen."""

    def __init__(self, accumulation_hooks: bool) -> None:
        self._accumulation_hooks = accumulation_hooks
        self._seen: dict[int, object] = {}  # id -> the object itself, so that no id is used twice
        self._kinds: list[tuple[nn.Module, type[nn.Module]]] = []
        self._items: list[tuple[Any, Any]] = []  # a dict, set, list or deque, and a copy of it
        self._undo: list[Callable[[], object]] = []
        self._leaves: list[tuple[Tensor, int | None]] = []

    def put_back(self) -> None:
        errors = []
        with torch.no_grad():
            for undo in (self._refill, *reversed(self._undo)):
                try:
                    undo()
                except Exception as error:  # one that fails does not stop the others
                    errors.append(error)
        if errors:
            raise errors[0]

    def _refill(self) -> None:
        for module, kind in self._kinds:
            if type(module) is not kind:
                module.__class__ = kind
        for items, before in self._items:
            if not _same_items(items, before):
                items.clear()
                (items.extend if isinstance(items, (list, deque)) else items.update)(before)

    def refuse_writes(self) -> None:
        """Raise if a parameter whose values were not copied has been written to."""
        for leaf, version in self._leaves:
            if version != _version(leaf):
                raise ProbeError(
                    f"a parameter of shape {tuple(leaf.shape)} was written to by the pass itself, which changed the "
                    "model. Make it a buffer (register_buffer): buffers are put back."
                )

    def generator(self, generator: Any) -> None:
        if self._is_new(generator):
            self._undo.append(_remember_generator(generator))

    def module(self, module: nn.Module) -> None:
        if id(module) in self._seen:
            return
        for one in module.modules():
            if self._is_new(one):
                self._one_module(one)

    def tensor(self, tensor: Tensor, written: bool = False) -> None:
        """Remember a tensor: the values of one that no optimizer drives, the gradient of one that may have one.

        With `written` also the values of a parameter, one that a forward writes to.
        """
        if not self._is_new(tensor) or isinstance(tensor, PartialTensor | PartialView):  # their parts are parameters
            return
        if is_lazy(tensor):
            raise ProbeError("a lazy module has no shape yet. Run one batch through the model first.")
        learns = tensor.is_leaf and (tensor.requires_grad or isinstance(tensor, nn.Parameter))
        if written or not learns:
            self._undo.append(_remember_values(tensor))
        else:
            self._leaves.append((tensor, _version(tensor)))
        if tensor.is_leaf:
            self._undo.append(_remember_gradient(tensor, self._accumulation_hooks))

    def _is_new(self, one: object) -> bool:
        known = len(self._seen)
        self._seen.setdefault(id(one), one)
        return len(self._seen) > known

    def _one_module(self, module: nn.Module) -> None:
        self._kinds.append((module, type(module)))
        written = getattr(module, "max_norm", None) is not None  # a lookup that rescales its own weight
        self._container(module.__dict__, written)
        if isinstance(module, torch.jit.ScriptModule):  # keeps its tensors elsewhere
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                self.tensor(tensor)
        if isinstance(module, nn.parallel.DistributedDataParallel):
            _run_alone(module)

    def _container(self, items: Any, written: bool) -> None:
        """Remember what a container holds, the tensors in it, and the containers in it unless it holds data."""
        if not self._is_new(items):
            return
        self._items.append((items, items.copy()))
        for item in items.values() if isinstance(items, dict) else items:
            if isinstance(item, Tensor):
                self.tensor(item, written)
            elif type(item) in _CONTAINERS and len(items) <= MOST_ITEMS:
                self._container(item, written)


class _Watch(TorchFunctionMode):
    """Notes every torch.Generator at its first use, before it is used."""

    def __init__(self, memory: _Memory) -> None:
        super().__init__()
        self._memory = memory

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()):
            if type(value) is torch.Generator:  # isinstance is ten times as slow
                self._memory.generator(value)
        return func(*args, **kwargs)


def _same_items(items: Any, before: Any) -> bool:
    """Whether a container holds the same objects, in the same order, as the copy of it."""
    if len(items) != len(before):
        return False
    if isinstance(items, dict) and not all(map(is_, items.values(), before.values())):
        return False
    return all(map(is_, items, before))


def _remember_values(tensor: Tensor) -> Callable[[], object]:
    """Put back a tensor's bits, its memory and its version counter."""
    tensor = tensor._local_tensor if hasattr(tensor, "_local_tensor") else tensor  # a shard of a DTensor
    with torch.inference_mode(tensor.is_inference()):
        # The same memory, also if the tensor is given another; a sparse tensor gets another at any write.
        alias = tensor if tensor.is_sparse else tensor.detach()
        saved = None if tensor.is_meta else _stored(alias).clone()
    version = _version(tensor)

    def undo() -> None:
        with torch.inference_mode(alias.is_inference()):
            if alias is not tensor and _memory(tensor) != _memory(alias):
                tensor.data = alias
            if saved is not None and not _same_bits(_stored(alias), saved):  # memory may be read-only
                _stored(alias).copy_(saved)
        if version is not None and tensor._version != version:
            torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))

    return undo


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), None if tensor.is_meta else tensor.data_ptr()


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _stored(tensor: Tensor) -> Tensor:
    """The part of an expanded tensor that has memory of its own; any other tensor whole."""
    if tensor.layout != torch.strided or 0 not in tensor.stride():
        return tensor
    return tensor[tuple(slice(0, 1) if step == 0 else slice(None) for step in tensor.stride())]


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.layout != torch.strided or a.is_cuda or a.shape != b.shape:
        return False  # on a GPU comparing would wait for it; writing does not
    return torch.equal(bits(a), bits(b))


def _remember_gradient(leaf: Tensor, accumulation_hooks: bool) -> Callable[[], object]:
    """Put back `.grad`, `requires_grad` and the hooks of a leaf, which is without `.grad` until then.

    It is without its accumulation hooks, too, unless they are to run: some step an optimizer.
    """
    gradient, requires_grad = leaf.grad, leaf.requires_grad
    hooks = dict(leaf._backward_hooks or {})
    later = getattr(leaf, "_post_accumulate_grad_hooks", None)
    later_hooks = dict(later or {})
    leaf.grad = None
    if later and not accumulation_hooks:
        later.clear()

    def undo() -> None:
        if leaf.grad is not gradient:
            leaf.grad = gradient
        if leaf.requires_grad != requires_grad:
            leaf.requires_grad_(requires_grad)
        _refill(leaf._backward_hooks, hooks)
        _refill(getattr(leaf, "_post_accumulate_grad_hooks", None), later_hooks)

    return undo


def _refill(hooks: dict[int, Any] | None, before: dict[int, Any]) -> None:
    if hooks is not None and dict(hooks) != before:
        hooks.clear()  # never replaced: autograd holds this very dict
        hooks.update(before)


def _remember_generator(generator: Any) -> Callable[[], object]:
    if isinstance(generator, torch.Generator):
        return partial(generator.set_state, generator.get_state())
    if isinstance(generator, np.random.Generator):
        generator = generator.bit_generator
    if isinstance(generator, np.random.BitGenerator):
        return partial(setattr, generator, "state", generator.state)
    if isinstance(generator, np.random.RandomState):
        return partial(generator.set_state, generator.get_state(legacy=False))
    if isinstance(generator, random.SystemRandom):
        return lambda: None  # it has no state
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    raise TypeError(
        f"generators: {type(generator).__name__} is no random generator. "
        "List torch.Generator, numpy.random.Generator or RandomState, or random.Random objects."
    )


@contextlib.contextmanager
def _random_numbers() -> Iterator[None]:
    """Put back the generators that everyone shares. CUDA is looked at only where it is in use."""
    cpu, numpys, pythons = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        np.random.set_state(numpys)
        random.setstate(pythons)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        elif torch.cuda.is_initialized():  # first used in the block: back to the start
            for generator in torch.cuda.default_generators:
                generator.manual_seed(generator.initial_seed())


def _eager_where_not_compiled() -> contextlib.AbstractContextManager[Any]:
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes a second
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("eager_on_recompile")
    return stance


def hooks_run() -> contextlib.AbstractContextManager[Any]:
    """Let compiled code run eagerly in the block, because it runs no hooks."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _run_alone(ddp: Any) -> None:
    """Let a DistributedDataParallel only move its inputs and run its module; putting back its attributes undoes it."""

    def inputs_on_device(*inputs: Any, **kwargs: Any) -> tuple[Any, Any]:
        if not ddp.device_ids:
            return inputs, kwargs
        from torch.distributed.utils import _to_kwargs

        device = torch.device(ddp.device_type, ddp.device_ids[0])
        moved = _to_kwargs(inputs, kwargs, device, ddp.use_side_stream_for_tensor_copies)
        return moved[0][0], moved[1][0]

    ddp.require_backward_grad_sync = False  # as in `no_sync`, for those who ask
    ddp.__dict__["_pre_forward"] = inputs_on_device
    ddp.__dict__["_post_forward"] = lambda output: output
