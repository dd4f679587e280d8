"""What was there before: whatever a block may change, as it was when it was first seen, and all of it put back.

Two ways lead to what there is:
    module    its class, its attributes, the lists and dicts in them, its tensors; and the modules inside it
    holder    anything else, such as an optimizer: what it holds, through attributes and containers, to the end

Each thing is met once; undo.py knows how one of each kind is put back.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, MutableMapping, MutableSequence, MutableSet
from types import MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from frostline.errors import ProbeError
from frostline.partial.tensor import PartialTensor, PartialView
from frostline.probe import undo
from frostline.probe.randomness import rewound
from frostline.probe.reach import GENERATORS, MOST_ITEMS

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
        for leaf, version in self._leaves:
            if version != undo.version(leaf):
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
            self._copies[id(tensor)], put_back = undo.values(tensor)
            self._undo.append((put_back,))
        else:
            self._leaves.append((tensor, undo.version(tensor)))
        if tensor.is_leaf:
            self._undo.append((undo.gradient(tensor, self._accumulation_hooks),))

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
            self._undo.append((undo.refill, value, undo.items(value)))
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
        self._undo.append((undo.refill, items, undo.items(items)))
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
