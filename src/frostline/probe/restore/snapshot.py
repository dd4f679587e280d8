"""What was there before: whatever a block may change, as it was when it was first seen, and all of it put back.

Two ways lead to what there is:
    module    its class, its attributes, the lists and dicts in them, its tensors; and the modules inside it
    holder    anything else, such as an optimizer: what it holds, through attributes and containers, to the end

Each thing is met once; py knows how one of each kind is put back.

One thing as it is now, and the function that puts it back: the same object, with the same bits.

    values      a tensor's numbers, memory and version counter
    gradient    what a leaf has beside its values: `.grad`, `requires_grad`, hooks
    items       what a container holds; `refill` puts it back
(Random generators are in randomness.py.) Nothing is written where nothing has changed: memory may be read-only.

Version counters matter: a buffer that is written and put back has its old bits but a new count, and the backward of a
step that is under way would refuse it.
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
from frostline.partial.tensor import PartialTensor, PartialView
from frostline.probe.restore.bits import bits
from frostline.probe.restore.reachable import GENERATORS, MOST_ITEMS
from frostline.probe.restore.rng import rewound

_CONTAINERS = {dict, OrderedDict, defaultdict, set, list, deque}  # of a module; subclasses may refuse to be refilled
_LEFT_ALONE = (type(None), bool, int, float, complex, str, bytes, type, ModuleType, MethodType, nn.Module)


class Before:
    """What was remembered so far. `before[tensor]`: a copy of the values of a tensor that may change.

    Args:
        accumulation_hooks: Whether those of the parameters are to run.
    """

    def __init__(self, accumulation_hooks: bool) -> None:
        self._accumulation_hooks = accumulation_hooks
        self._seen: dict[int, object] = {}  # id -> the object itself, so that no id is used twice
        self._copies: dict[int, Tensor] = {}
        self._leaves: list[tuple[Tensor, int | None]] = []  # whose values were not copied, and their versions
        self._undo: list[tuple[Any, ...]] = []  # functions and their arguments

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._copies

    def __getitem__(self, tensor: Tensor) -> Tensor:
        return self._copies[id(tensor)]

    def put_back(self) -> None:
        """Put everything back; if something cannot be, the rest all the same, and then raise."""
        errors = []
        with torch.no_grad():
            for function, *arguments in reversed(self._undo):
                try:
                    function(*arguments)
                except Exception as error:
                    errors.append(error)
        if errors:
            raise errors[0]

    def refuse_writes(self) -> None:
        """Raise if a parameter whose values were not copied has been written to."""
        for leaf, noted in self._leaves:
            if noted != version_of(leaf):
                raise ProbeError(
                    f"a parameter of shape {tuple(leaf.shape)} was written to by the pass itself, which changed the "
                    "model. Make it a buffer (register_buffer): buffers are put back."
                )

    def generator(self, generator: Any) -> None:
        """Remember where a random generator stands; TypeError if it is none."""
        if self._is_new(generator):
            self._undo.append((rewound(generator),))

    def tensor(self, tensor: Tensor, written: bool = False) -> None:
        """Remember a tensor: the values of one that no optimizer drives, the gradient of one that may have one.

        With `written` also the values of a parameter, one that a forward or a step writes to.
        """
        if not self._is_new(tensor) or isinstance(tensor, PartialTensor | PartialView):  # their parts are parameters
            return
        if is_lazy(tensor):
            raise ProbeError("a lazy module has no shape yet. Run one batch through the model first.")
        learns = tensor.is_leaf and (tensor.requires_grad or isinstance(tensor, nn.Parameter))
        if written or not learns:
            self._copies[id(tensor)], put_back = save_values(tensor)
            self._undo.append((put_back,))
        else:
            self._leaves.append((tensor, version_of(tensor)))
        if tensor.is_leaf:
            self._undo.append((save_gradient(tensor, self._accumulation_hooks),))

    def module(self, module: nn.Module) -> None:
        """Remember a module and those inside it."""
        if id(module) in self._seen:
            return
        for one in module.modules():
            if self._is_new(one):
                self._one_module(one)

    def holder(self, value: Any) -> None:
        """Remember all that `value` holds: values of tensors, containers, attributes; not the modules."""
        if isinstance(value, _LEFT_ALONE):
            return
        if isinstance(value, Tensor):
            return self.tensor(value, written=True)
        if isinstance(value, GENERATORS):
            return self.generator(value)
        if not self._is_new(value):
            return
        children: Iterable[Any] = ()
        if isinstance(value, np.ndarray):
            if value.flags.writeable:
                self._undo.append((np.copyto, value, value.copy()))
        elif isinstance(value, MutableMapping | MutableSequence | MutableSet):
            self._undo.append((refill, value, items_of(value)))
            children = value.values() if isinstance(value, MutableMapping) else value
        elif isinstance(value, tuple):
            children = value
        elif hasattr(value, "param_groups") or (hasattr(value, "__dict__") and not callable(value)):
            children = [vars(value)]
        for child in list(children):
            self.holder(child)

    def _is_new(self, one: object) -> bool:
        known = len(self._seen)
        self._seen.setdefault(id(one), one)
        return len(self._seen) > known

    def _one_module(self, module: nn.Module) -> None:
        written = getattr(module, "max_norm", None) is not None  # a lookup that rescales its own weight
        self._container(module.__dict__, written)
        if isinstance(module, torch.jit.ScriptModule):  # keeps its tensors elsewhere
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                self.tensor(tensor)
        self._undo.append((_class_again, module, type(module)))
        if isinstance(module, nn.parallel.DistributedDataParallel):
            _run_alone(module)

    def _container(self, items: Any, written: bool) -> None:
        """Remember what a container holds, the tensors in it, and the containers in it unless it holds data."""
        if not self._is_new(items):
            return
        self._undo.append((refill, items, items_of(items)))
        for item in items.values() if isinstance(items, dict) else items:
            if isinstance(item, Tensor):
                self.tensor(item, written)
            elif type(item) in _CONTAINERS and len(items) <= MOST_ITEMS:
                self._container(item, written)


def _class_again(module: nn.Module, kind: type[nn.Module]) -> None:
    if type(module) is not kind:
        module.__class__ = kind


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


_ACCUMULATION = "_post_accumulate_grad_hooks"
_HOOKS = ("_backward_hooks", _ACCUMULATION)


def save_values(tensor: Tensor) -> tuple[Tensor, Callable[[], object]]:
    """A copy of what this process holds of a tensor, of the same shape and dtype; and what puts it back."""
    held = getattr(tensor, "_local_tensor", tensor)  # a shard of a DTensor
    with torch.inference_mode(held.is_inference()):
        # The same memory, also if the tensor is given another; a sparse tensor gets another at any write.
        alias = held.detach() if held.layout == torch.strided else held
        copy = _stored(alias).clone()
    counts = version_of(tensor), version_of(held)

    def undo() -> None:
        with torch.inference_mode(alias.is_inference()):
            if alias is not held and _place(held) != _place(alias):
                held.data = alias
            if not (alias.is_meta or _same(_stored(alias), copy)):
                _stored(alias).copy_(copy)
        for one, count in zip((tensor, held), counts, strict=True):
            if count is not None and one._version != count:
                torch._C._autograd._unsafe_set_version_counter((one,), (count,))

    return copy.expand(alias.shape) if copy.shape != alias.shape else copy, undo


def version_of(tensor: Tensor) -> int | None:
    """How often a tensor was written to; None for one made under inference_mode, which does not count."""
    return None if tensor.is_inference() else tensor._version


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, None if tensor.is_meta else tensor.data_ptr()


def _same(now: Tensor, copy: Tensor) -> bool:
    if now.layout != torch.strided or not now.is_cpu:
        return False  # on a GPU comparing would wait for it; writing does not
    return torch.equal(bits(now), bits(copy))


def _stored(tensor: Tensor) -> Tensor:
    """The part of an expanded tensor that has memory of its own; any other tensor whole."""
    if tensor.layout != torch.strided or 0 not in tensor.stride():
        return tensor
    return tensor[tuple(slice(0, 1) if step == 0 else slice(None) for step in tensor.stride())]


def save_gradient(leaf: Tensor, accumulation_hooks: bool) -> Callable[[], object]:
    """Take `.grad` of a leaf out of sight; what puts it back, and `requires_grad` and hooks with it.

    Its accumulation hooks go out of sight, too, unless they are to run: some step an optimizer.
    """
    kept, requires_grad = leaf.grad, leaf.requires_grad
    hooks = {name: dict(getattr(leaf, name, None) or {}) for name in _HOOKS}
    leaf.grad = None
    if hooks[_ACCUMULATION] and not accumulation_hooks:
        getattr(leaf, _ACCUMULATION).clear()

    def undo() -> None:
        if leaf.grad is not kept:
            leaf.grad = kept
        if leaf.requires_grad != requires_grad:
            leaf.requires_grad_(requires_grad)
        for name, before in hooks.items():
            if (now := getattr(leaf, name, None)) is not None:
                refill(now, before)  # never replaced: autograd holds this very dict

    return undo


def items_of(container: Any) -> dict[Any, Any] | list[Any]:
    """A copy of what a dict, list, set, deque or the like holds, for `refill`."""
    return dict(container) if isinstance(container, (dict, MutableMapping)) else list(container)


def refill(container: Any, before: dict[Any, Any] | list[Any]) -> None:
    """Put back the objects that a container held, in their order."""
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
        for one in before:
            container.add(one)
    else:
        container.extend(before)
