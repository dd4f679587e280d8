"""All or nothing: if a change to a model or to optimizers is interrupted, by an error or Ctrl-C, it is undone.

What is about to change is recorded first: by reference if it will be replaced, as a copy if it will be overwritten.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.partial.model_tensors import ModelTensor, state_of
from frostline.partial.optimizer_guard import noted
from frostline.partial.sharded import in_shard, is_sharded, local_part
from frostline.partial.tensor.memory import writable


@contextlib.contextmanager
def model_restored_on_error(model: nn.Module, tensors: Sequence[ModelTensor]) -> Iterator[None]:
    """Run the block; if it raises, give `model` the classes, parts, modes and gradients that it had before.

    Args:
        model: The model.
        tensors: Its tensors, as `find_tensors` lists them.
            (The values of a frozen part at its learned positions are a copy of the learned ones: not restored.)
    """
    undo: list[Callable[[], None]] = [_module_undo(module) for module in model.modules()]
    undo += [_tensor_undo(tensor) for t in tensors for tensor in (t.tensor, t.learned) if tensor is not None]
    undo.append(noted([tensor for t in tensors for tensor in (t.tensor, t.learned) if tensor is not None]))
    with _undone_on_error(undo):
        yield


@contextlib.contextmanager
def optimizers_restored_on_error(optimizers: Sequence[Optimizer]) -> Iterator[None]:
    """Run the block; if it raises, give the optimizers the state and the groups that they had before."""
    undo = [_optimizer_undo(optimizer) for optimizer in optimizers]
    with _undone_on_error(undo):
        yield


@contextlib.contextmanager
def values_restored_on_error(overwritten: Sequence[tuple[Tensor, tuple[Tensor, ...] | None]]) -> Iterator[None]:
    """Run the block; if it raises, give tensors the values that they had before: at an index, or (None) all of them."""
    undo = [_values_undo(tensor, index) for tensor, index in overwritten]
    with _undone_on_error(undo):
        yield


@contextlib.contextmanager
def _undone_on_error(undo: Sequence[Callable[[], None]]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for restore in undo:
            restore()
        raise


def set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    """Give `module` another class, past a `__setattr__` of its own: such a module may refuse new attributes."""
    object.__setattr__(module, "__class__", cls)


def _module_undo(module: nn.Module) -> Callable[[], None]:
    cls, training, parameters = type(module), module.training, dict(module._parameters)
    state = state_of(module)
    fields = None if state is None else {k: dict(v) if isinstance(v, dict) else v for k, v in vars(state).items()}
    flat_weights = list(module._flat_weights) if isinstance(module, nn.RNNBase) else None

    def restore() -> None:
        set_class(module, cls)
        module.__dict__["training"] = training
        module._parameters.clear()
        module._parameters.update(parameters)
        if state is None or fields is None:
            module.__dict__.pop("_frostline", None)
        else:
            vars(state).update(fields)
            for memory in state.partial.values():
                memory.in_use = True
            module.__dict__["_frostline"] = state
        if flat_weights is not None:
            module.__dict__["_flat_weights"] = flat_weights

    return restore


def _tensor_undo(tensor: Tensor) -> Callable[[], None]:
    data, grad, requires_grad = tensor.data, tensor.grad, tensor.requires_grad
    hooks = {name: getattr(tensor, name) for name in ("_backward_hooks", "_post_accumulate_grad_hooks")}

    def restore() -> None:
        if tensor.data_ptr() != data.data_ptr():
            tensor.data = data
        tensor.grad = grad
        tensor.requires_grad_(requires_grad)
        for name, registered in hooks.items():
            if getattr(tensor, name) is not registered:
                setattr(tensor, name, registered)

    return restore


def _values_undo(tensor: Tensor, index: tuple[Tensor, ...] | None) -> Callable[[], None]:
    where: Any = ... if index is None else tuple(each.to(tensor.device) for each in index)
    if is_sharded(tensor):
        if index is not None:
            _, own, rest = in_shard(index, tensor)
            where = (*own, *rest)
        tensor = local_part(tensor)
    values = tensor.detach()[where].clone()

    def restore() -> None:
        with torch.no_grad():
            writable(tensor)[where] = values

    return restore


def _optimizer_undo(optimizer: Optimizer) -> Callable[[], None]:
    state = dict(optimizer.state)
    lists: list[tuple[list[Any], list[Any]]] = [
        (group[key], list(group[key]))
        for group in optimizer.param_groups
        for key in ("params", "param_names")
        if key in group
    ]

    def restore() -> None:
        optimizer.state.clear()
        optimizer.state.update(state)
        for held, before in lists:
            held[:] = before

    return restore
