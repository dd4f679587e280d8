"""Snapshot of everything a block may modify, and its restoration: the same objects, with the same bits.

Two ways to add to it:
    add_module     a module's class, attributes, the lists and dicts in them, its tensors; and its submodules
    add_contents   any other object, such as an optimizer: all that it holds, through attributes and containers

Each object is added once. What is noted of it depends on its kind, and each kind has a function that restores it:
    values      a tensor's elements, memory and version counter
    gradient    of a leaf: `.grad`, `requires_grad`, hooks
    items       what a container holds
    memory      of a partial tensor: the copy of what is learned in its frozen part
    generator   the state of a random generator (rng.py)

Parameters are large, and a pass rarely writes to one: they are copied when a write is about to happen
(`save_before_write`, which restored.py calls for every torch function that writes).

Nothing is written where nothing has changed: memory may be read-only. A dictionary is never cleared: another thread may
be reading it.

Version counters are restored too: autograd compares them, so the backward of a step in progress would reject a buffer
that was written to and has its old bits again.
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, MutableMapping, MutableSequence, MutableSet
from operator import is_
from types import MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from frostline.errors import ProbeError
from frostline.partial.model_tensors import memories_of, state_of
from frostline.partial.sharded import is_sharded
from frostline.partial.tensor import PartialTensor, PartialView
from frostline.partial.tensor.memory import Memory
from frostline.probe.restore.attributes import own_attributes, slots_of
from frostline.probe.restore.bits import storage_address
from frostline.probe.restore.reachable import GENERATORS, MOST_ITEMS
from frostline.probe.restore.rng import rng_restorer
from frostline.probe.restore.values import save_values, version_of

# Of a module; other subclasses may reject a refill.
_CONTAINERS = {dict, OrderedDict, defaultdict, Counter, set, list, deque, tuple}
_NOT_COPIED = (type(None), bool, int, float, complex, str, bytes, type, ModuleType, MethodType, nn.Module)
_ACCUMULATION = "_post_accumulate_grad_hooks"
_HOOKS = ("_backward_hooks", _ACCUMULATION)


class Snapshot:
    """The state of all objects added so far. `snapshot[tensor]` is a copy of a tensor that may be modified.

    Args:
        accumulation_hooks: Whether the parameters' post-accumulate-grad hooks stay active.
        compiled: Whether compiled code will run, whose writes nobody sees: parameters are then copied at once.
    """

    def __init__(self, accumulation_hooks: bool, compiled: bool = False) -> None:
        self._accumulation_hooks = accumulation_hooks
        self.compiled = compiled
        self._sharded = False
        self._seen: dict[int, object] = {}  # id -> the object itself, which keeps its id from being used again
        self._copies: dict[int, Tensor] = {}
        # Address of a storage -> the parameters in it whose values were not copied, and their version counters.
        self._uncopied: dict[int, list[tuple[Tensor, int | None]]] = {}
        self._restorers: list[tuple[Any, ...]] = []  # functions and their arguments
        self._memories: dict[int, tuple[Memory, Callable[[], None]]] = {}  # id of a frozen part -> its, and a restorer

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._copies

    def __getitem__(self, tensor: Tensor) -> Tensor:
        return self._copies[id(tensor)]

    def knows(self, value: object) -> bool:
        """Return whether a tensor, module or container has been added."""
        return id(value) in self._seen

    def restore(self) -> None:
        """Restore everything; if something raises, restore the rest all the same, and then raise the first error."""
        errors = []
        with torch.no_grad():
            for function, *arguments in reversed(self._restorers):
                try:
                    function(*arguments)
                except Exception as error:
                    errors.append(error)
            for _, function in self._memories.values():  # after the learned parts
                function()
        if errors:
            raise errors[0]

    def check_unwritten(self) -> None:
        """Raise ProbeError if a parameter whose values were not copied has been written to."""
        for leaf, version in itertools.chain.from_iterable(self._uncopied.values()):
            synced = id(leaf) in self._memories and self._memories[id(leaf)][0].is_synced(leaf)
            if version != version_of(leaf) and not synced:
                raise ProbeError(
                    f"a parameter of shape {tuple(leaf.shape)} was written to by the pass itself, which changed the "
                    "model. Make it a buffer (register_buffer): buffers are restored."
                )

    def save_before_write(self, target: Tensor) -> None:
        """Copy the parameters that share memory with `target`, which is about to be written to."""
        if isinstance(target, PartialTensor | PartialView):
            whole = target if isinstance(target, PartialTensor) else target.origin
            for part in (whole.learned, whole.frozen):
                self._save_sharing(storage_address(part), past_memory=True)
            return
        address = storage_address(target)
        # The whole parameters that FSDP2 makes of shards lie in memory that it frees, so they are not copied.
        if address and (not self._sharded or is_sharded(target)):
            self._save_sharing(address)
        if isinstance(target, nn.Parameter) and not self._sharded:  # of a module that was not found
            self.add_tensor(target, written=True)

    def add_generator(self, generator: Any) -> None:
        """Add the state of a random generator; TypeError if it is not a random generator."""
        if self._is_new(generator):
            self._restorers.append((rng_restorer(generator),))

    def add_tensor(self, tensor: Tensor, written: bool = False) -> None:
        """Add a tensor: its values unless it learns, and its gradient if it is a leaf.

        Of a parameter the version is noted instead: `save_before_write` copies it, and `check_unwritten` compares.
        With `written` the values of a parameter are copied too.
        """
        if not self._is_new(tensor) or isinstance(tensor, PartialTensor | PartialView):  # their parts are parameters
            return
        if is_lazy(tensor):
            raise ProbeError("a lazy module has no shape yet. Run one batch through the model first.")
        self._sharded |= is_sharded(tensor)
        learns = tensor.is_leaf and (tensor.requires_grad or isinstance(tensor, nn.Parameter))
        if written or not learns or self.compiled:
            self._copy(tensor)
        else:
            self._uncopied.setdefault(storage_address(tensor), []).append((tensor, version_of(tensor)))
        if tensor.is_leaf:
            self._restorers.append((_save_gradient(tensor, self._accumulation_hooks),))

    def add_module(self, module: nn.Module) -> None:
        """Add a module and its submodules."""
        if id(module) in self._seen:
            return
        for each in module.modules():
            if self._is_new(each):
                self._add_one_module(each)

    def add_contents(self, value: Any) -> None:
        """Add all that `value` holds: values of tensors, containers, attributes; but no modules."""
        if isinstance(value, _NOT_COPIED):
            return
        if isinstance(value, Tensor):
            return self.add_tensor(value, written=True)
        if isinstance(value, GENERATORS):
            return self.add_generator(value)
        if not self._is_new(value):
            return
        children: Iterable[Any] = ()
        if isinstance(value, np.ndarray | bytearray):
            self._add_raw(value)
        elif isinstance(value, MutableMapping | MutableSequence | MutableSet):
            self._restorers.append((_refill, value, _items(value)))
            children = value.values() if isinstance(value, MutableMapping) else value
        elif isinstance(value, tuple):
            children = value
        elif hasattr(value, "param_groups") or not callable(value):
            children = [*([vars(value)] if hasattr(value, "__dict__") else []), *self._add_slots(value)]
        for child in list(children):
            self.add_contents(child)

    def _save_sharing(self, address: int, past_memory: bool = False) -> None:
        for pair in self._uncopied.pop(address, ()):
            # A frozen part is written to whenever what is learned is brought up to date in it: `_memories` undo that.
            if id(pair[0]) in self._memories and not past_memory:
                self._uncopied.setdefault(address, []).append(pair)
            else:
                self._restorers.append((save_values(pair[0])[1],))

    def _copy(self, tensor: Tensor) -> None:
        self._copies[id(tensor)], restore = save_values(tensor)
        self._restorers.append((restore,))

    def _add_raw(self, value: np.ndarray[Any, Any] | bytearray) -> None:
        if isinstance(value, bytearray):
            self._restorers.append((_rewrite, value, bytes(value)))
        elif value.flags.writeable:
            self._restorers.append((np.copyto, value, value.copy()))

    def _add_slots(self, value: object) -> list[object]:
        """Add which objects the `__slots__` of an object hold; return them."""
        slots = slots_of(value)
        if slots:
            self._restorers.append((_restore_slots, value, slots))
        return list(slots.values())

    def _is_new(self, value: object) -> bool:
        known = len(self._seen)
        self._seen.setdefault(id(value), value)
        return len(self._seen) > known

    def _add_one_module(self, module: nn.Module) -> None:
        written = getattr(module, "max_norm", None) is not None  # an embedding whose lookup rescales its own weight
        for memory, frozen, learned in memories_of(module):  # first: bringing one up to date counts as a write
            if id(frozen) not in self._memories:
                self._memories[id(frozen)] = memory, memory.restorer(frozen, learned)
        if (state := state_of(module)) is not None:
            self._add_container(state.shown, written)
        self._add_container(module.__dict__, written)
        if self._is_new(type(module)):
            self._add_container(own_attributes(type(module)), written=False)
        if isinstance(module, torch.jit.ScriptModule):  # its tensors are not in its __dict__
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                self.add_tensor(tensor)
        self._restorers.append((_restore_class, module, type(module)))  # train_only gives a module a class of its own
        if isinstance(module, nn.parallel.DistributedDataParallel):
            _bypass_ddp(module)

    def _add_container(self, items: Any, written: bool) -> None:
        """Add a container and the tensors in it; and the containers in it, unless it is so long that it holds data."""
        if not self._is_new(items):
            return
        if not isinstance(items, tuple):
            self._restorers.append((_refill, items, _items(items)))
        for item in items.values() if isinstance(items, dict) else items:
            if isinstance(item, Tensor):
                self.add_tensor(item, written)
            elif type(item) in _CONTAINERS:
                if len(items) <= MOST_ITEMS:
                    self._add_container(item, written)
            elif isinstance(item, np.ndarray | bytearray):
                if self._is_new(item):
                    self._add_raw(item)
            elif len(items) <= MOST_ITEMS and slots_of(item) and self._is_new(item):
                self._add_container(self._add_slots(item), written)


def _restore_class(module: nn.Module, kind: type[nn.Module]) -> None:
    if type(module) is not kind:
        module.__class__ = kind


def _bypass_ddp(ddp: Any) -> None:
    """Make a DistributedDataParallel only move its inputs and run its module; restoring its attributes undoes it."""

    def inputs_on_device(*inputs: Any, **kwargs: Any) -> tuple[Any, Any]:
        if not ddp.device_ids:
            return inputs, kwargs
        from torch.distributed.utils import _to_kwargs

        device = torch.device(ddp.device_type, ddp.device_ids[0])
        moved = _to_kwargs(inputs, kwargs, device, ddp.use_side_stream_for_tensor_copies)
        return moved[0][0], moved[1][0]

    ddp.require_backward_grad_sync = False  # as in `no_sync`, for code that reads it
    # `no_sync` is not enough: the forward would still broadcast buffers and rebuild the reducer's buckets.
    ddp.__dict__["_pre_forward"] = inputs_on_device
    ddp.__dict__["_post_forward"] = lambda output: output


def _save_gradient(leaf: Tensor, accumulation_hooks: bool) -> Callable[[], object]:
    """Set `leaf.grad` to None; return a function that restores it, `requires_grad` and hooks.

    Its post-accumulate-grad hooks are removed meanwhile, unless `accumulation_hooks`: some step an optimizer.
    """
    gradient, requires_grad = leaf.grad, leaf.requires_grad
    hooks = {name: dict(getattr(leaf, name, None) or {}) for name in _HOOKS}
    leaf.grad = None
    if hooks[_ACCUMULATION] and not accumulation_hooks:
        getattr(leaf, _ACCUMULATION).clear()

    def restore() -> None:
        if leaf.grad is not gradient:
            leaf.grad = gradient
        if leaf.requires_grad != requires_grad:
            leaf.requires_grad_(requires_grad)
        for name, before in hooks.items():
            if (now := getattr(leaf, name, None)) is not None:
                _refill(now, before)  # never replaced: autograd holds this very dict

    return restore


def _items(container: Any) -> dict[Any, Any] | list[Any]:
    """Return a copy of what a dict, list, set, deque or the like holds, for `_refill`."""
    return dict(container) if isinstance(container, (dict, MutableMapping)) else list(container)


def _refill(container: Any, before: dict[Any, Any] | list[Any]) -> None:
    """Restore the objects that a container held, in their order."""
    if (
        len(container) == len(before)
        and all(map(is_, container, before))
        and (isinstance(before, list) or all(map(is_, container.values(), before.values())))
    ):
        return
    if isinstance(before, dict):
        for key in [key for key in container if key not in before]:
            del container[key]
        for key, value in before.items():
            if key not in container or container[key] is not value:
                container[key] = value
        if "_parameters" not in before and list(container) != list(before):  # of a module's `__dict__` none is asked
            for key in before:
                container[key] = container.pop(key)
        return
    if type(container) is list:
        container[:] = before
        return
    container.clear()
    for item in before:
        container.add(item) if isinstance(container, MutableSet) else container.append(item)


def _rewrite(container: bytearray, before: bytes) -> None:
    if container != before:
        container[:] = before


def _restore_slots(value: object, before: dict[str, object]) -> None:
    now = slots_of(value)
    for name in now.keys() - before.keys():
        delattr(value, name)
    for name, item in before.items():
        if name not in now or now[name] is not item:
            object.__setattr__(value, name, item)
