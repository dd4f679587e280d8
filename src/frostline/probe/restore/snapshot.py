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

Nothing is written where nothing has changed: memory may be read-only.

Version counters are restored too: autograd compares them, so the backward of a step in progress would reject a buffer
that was written to and has its old bits again.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
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
from frostline.partial.tensor import PartialTensor, PartialView
from frostline.partial.tensor.memory import Memory
from frostline.probe.restore.bits import bits
from frostline.probe.restore.reachable import GENERATORS, MOST_ITEMS
from frostline.probe.restore.rng import rng_restorer

_CONTAINERS = {dict, OrderedDict, defaultdict, set, list, deque}  # of a module; subclasses may reject a refill
_NOT_COPIED = (type(None), bool, int, float, complex, str, bytes, type, ModuleType, MethodType, nn.Module)
_ACCUMULATION = "_post_accumulate_grad_hooks"
_HOOKS = ("_backward_hooks", _ACCUMULATION)


class Snapshot:
    """The state of all objects added so far. `snapshot[tensor]` is a copy of a tensor that may be modified.

    Args:
        accumulation_hooks: Whether the parameters' post-accumulate-grad hooks stay active.
    """

    def __init__(self, accumulation_hooks: bool) -> None:
        self._accumulation_hooks = accumulation_hooks
        self._seen: dict[int, object] = {}  # id -> the object itself, which keeps its id from being used again
        self._copies: dict[int, Tensor] = {}
        self._versions: list[tuple[Tensor, int | None]] = []  # of parameters whose values were not copied
        self._restorers: list[tuple[Any, ...]] = []  # functions and their arguments
        self._memories: dict[int, tuple[Memory, Callable[[], None]]] = {}  # id of a frozen part -> its, and a restorer

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._copies

    def __getitem__(self, tensor: Tensor) -> Tensor:
        return self._copies[id(tensor)]

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
        for leaf, version in self._versions:
            synced = id(leaf) in self._memories and self._memories[id(leaf)][0].is_synced(leaf)
            if version != _version_of(leaf) and not synced:
                raise ProbeError(
                    f"a parameter of shape {tuple(leaf.shape)} was written to by the pass itself, which changed the "
                    "model. Make it a buffer (register_buffer): buffers are restored."
                )

    def add_generator(self, generator: Any) -> None:
        """Add the state of a random generator; TypeError if it is not a random generator."""
        if self._is_new(generator):
            self._restorers.append((rng_restorer(generator),))

    def add_tensor(self, tensor: Tensor, written: bool = False) -> None:
        """Add a tensor: its values unless it learns, and its gradient if it is a leaf.

        Only an optimizer writes to a parameter, so a pass needs no copy of it: its version is noted instead, and
        `check_unwritten` compares. With `written` the values of a parameter are copied too.
        """
        if not self._is_new(tensor) or isinstance(tensor, PartialTensor | PartialView):  # their parts are parameters
            return
        if is_lazy(tensor):
            raise ProbeError("a lazy module has no shape yet. Run one batch through the model first.")
        learns = tensor.is_leaf and (tensor.requires_grad or isinstance(tensor, nn.Parameter))
        if written or not learns:
            self._copies[id(tensor)], restore = _save_values(tensor)
            self._restorers.append((restore,))
        else:
            self._versions.append((tensor, _version_of(tensor)))
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
        if isinstance(value, np.ndarray):
            if value.flags.writeable:
                self._restorers.append((np.copyto, value, value.copy()))
        elif isinstance(value, MutableMapping | MutableSequence | MutableSet):
            self._restorers.append((_refill, value, _items(value)))
            children = value.values() if isinstance(value, MutableMapping) else value
        elif isinstance(value, tuple):
            children = value
        elif hasattr(value, "param_groups") or (hasattr(value, "__dict__") and not callable(value)):
            children = [vars(value)]
        for child in list(children):
            self.add_contents(child)

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
        self._restorers.append((_refill, items, _items(items)))
        for item in items.values() if isinstance(items, dict) else items:
            if isinstance(item, Tensor):
                self.add_tensor(item, written)
            elif type(item) in _CONTAINERS and len(items) <= MOST_ITEMS:
                self._add_container(item, written)


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


def _save_values(tensor: Tensor) -> tuple[Tensor, Callable[[], object]]:
    """Return a copy of what this process holds of a tensor, same shape and dtype, and a function that restores it."""
    held = getattr(tensor, "_local_tensor", tensor)  # the shard of a DTensor
    with torch.inference_mode(held.is_inference()):
        # An alias keeps the memory although `tensor.data` may be replaced; a sparse tensor has new memory at any write.
        alias = held.detach() if held.layout == torch.strided else held
        copy = _without_expanded(alias).clone()
    versions = _version_of(tensor), _version_of(held)

    def restore() -> None:
        with torch.inference_mode(alias.is_inference()):
            if alias is not held and _memory(held) != _memory(alias):
                held.data = alias
            if not (alias.is_meta or _unchanged(_without_expanded(alias), copy)):
                _without_expanded(alias).copy_(copy)
        for written, version in zip((tensor, held), versions, strict=True):
            if version is not None and written._version != version:
                torch._C._autograd._unsafe_set_version_counter((written,), (version,))

    return copy.expand(alias.shape) if copy.shape != alias.shape else copy, restore


def _version_of(tensor: Tensor) -> int | None:
    """Return how often a tensor was written to; None for one made under inference_mode, which does not count."""
    return None if tensor.is_inference() else tensor._version


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, None if tensor.is_meta else tensor.data_ptr()


def _unchanged(now: Tensor, copy: Tensor) -> bool:
    if now.layout != torch.strided or not now.is_cpu:
        return False  # on a GPU comparing would wait for it; writing does not
    return torch.equal(bits(now), bits(copy))


def _without_expanded(tensor: Tensor) -> Tensor:
    """Return `tensor` with expanded dimensions (stride 0) cut to length 1: they share memory, so cannot be written."""
    if tensor.layout != torch.strided or 0 not in tensor.stride():
        return tensor
    return tensor[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())]


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
    container.clear()
    if isinstance(before, dict):
        container.update(before)
    elif isinstance(container, MutableSet):
        for item in before:
            container.add(item)
    else:
        container.extend(before)
