"""Attributes and methods of a partial tensor that speak of the Parameter, not of the values in its memory.

Its gradient is that of the learned part, as is `requires_grad`; `detach()` and `data` are views that write through; and
what would be silently lost is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from frostline.errors import PartialTensorError
from frostline.partial.tensor.dispatch import NO_SET, VIEW_OVERRIDES, PartialView, check_write, memory_of, view
from frostline.partial.tensor.partial_tensor import OVERRIDES, PartialTensor


def _detach(weight: PartialTensor) -> Tensor:
    if torch.compiler.is_compiling():
        return weight.merged().detach()
    check_no_new_parameter(sys._getframe(2))
    if _is_being_split(sys._getframe(2)):
        weight.sync()
        return memory_of(weight)
    if weight.stands_in:
        return PartialTensor.stand_in(weight.frozen, weight.learned.detach(), weight.memory)
    weight.sync()
    return view(weight, Tensor._make_subclass(PartialView, weight))


def _detach_view(tensor: PartialView) -> Tensor:
    check_no_new_parameter(sys._getframe(2))
    tensor.origin.sync()
    return view(tensor.origin, Tensor._make_subclass(PartialView, tensor))


def _set_data(weight: PartialTensor, full: Tensor) -> None:
    """Write the whole tensor `full` (V, *) to both parts of `weight`."""
    check_write(Tensor.copy_, (_detach(weight),), {})
    if full.shape != weight.frozen.shape:
        raise PartialTensorError(
            f"the new value has shape {tuple(full.shape)}, the partial tensor {tuple(weight.frozen.shape)}. "
            "To change the shape, call fl.merge(model) first."
        )
    if full.dtype != weight.frozen.dtype:
        why = f"the new value is {full.dtype}, the partial tensor {weight.frozen.dtype}. Use `module.to(dtype)`."
        raise PartialTensorError(why)
    weight.sync(to_write=True)
    with torch.no_grad():
        weight.frozen.copy_(full)
    weight.sync()


def _requires_grad_(weight: PartialTensor, requires_grad: bool = True) -> PartialTensor:
    weight.learned.requires_grad_(requires_grad)
    return weight


def _grad(weight: PartialTensor) -> Tensor | None:
    if sys._getframe(2).f_code.co_name == "safe_grad":  # a compiler describes a captured weight by its shape
        return None
    weight.check_is_no_leaf()
    return weight.learned.grad


def _gradients(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> tuple[Tensor | None, ...]:
    """Do what `torch.autograd.grad` does, with zeros where a partial tensor is frozen: uses of its parts count too."""
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    for tensor in inputs:
        if isinstance(tensor, PartialView):
            _check_not_passed_by(tensor)
    leaves = [tensor.learned if isinstance(tensor, PartialTensor) else tensor for tensor in inputs]
    found = torch.autograd.grad(outputs, leaves, *args, **kwargs)
    return tuple(
        tensor.learned_indices.merged(torch.zeros_like(tensor.frozen), gradient.to_dense())
        if isinstance(tensor, PartialTensor) and gradient is not None
        else gradient
        for tensor, gradient in zip(inputs, found, strict=True)
    )


def _grad_fn(weight: PartialTensor) -> Any:
    check_no_new_parameter(sys._getframe(2))
    return weight.grad_fn


def _is_leaf(weight: PartialTensor) -> bool:
    """Return False, so that an optimizer that is given it raises an error."""
    return _is_being_split(sys._getframe(2))


def _is_being_split(caller: FrameType) -> bool:
    """Return whether tensor parallelism takes the values, for a DTensor that it then gives to the module."""
    return caller.f_code.co_name == "distribute_tensor"


def check_no_new_parameter(caller: FrameType) -> None:
    """Raise if torch is about to make a Parameter of a partial tensor: of one part, for a module that has no plan."""
    if caller.f_code in (nn.Module.register_parameter.__code__, nn.Parameter.__new__.__code__):
        raise PartialTensorError(
            "a partial tensor has two parts, so it cannot become a Parameter of another module. Call fl.merge(model), "
            "tie, convert, prune or parametrize, then fl.train_only again; or pass `weight.detach().clone()`."
        )


def _raising(advice: str) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        raise PartialTensorError(advice)

    return run


def _check_not_passed_by(tensor: PartialView) -> None:
    """Raise if the gradient of something made of a view has no way through it, as it would have in a plain tensor."""
    if tensor.passed_by:
        raise PartialTensorError(
            "a view of a partial tensor was used before its gradient was asked for, so it will get none. "
            "Call retain_grad() or register_hook(...) on it before it is used."
        )


def _grad_of_view(tensor: PartialView) -> Tensor | None:
    if tensor.retains_grad and tensor.grad is None:  # `backward(inputs=[view])`
        _check_not_passed_by(tensor)
    return tensor.grad


def _watched(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(tensor: PartialView, *args: Any) -> Any:
        _check_not_passed_by(tensor)
        return function(tensor, *args)

    return run


_no_hook = _raising("a hook on a partial tensor would never run. Register it on its learned part: weight.learned.")

_tensor: Any = Tensor
_DETACH = _tensor.data.__get__, _tensor.detach, torch.detach
_ATTRIBUTES: dict[Callable[..., Any], Callable[..., Any]] = {
    _tensor.requires_grad.__get__: lambda weight: weight.learned.requires_grad,
    _tensor.requires_grad.__set__: _requires_grad_,
    _tensor.requires_grad_: _requires_grad_,
    _tensor.is_leaf.__get__: _is_leaf,
    _tensor.grad_fn.__get__: _grad_fn,
    _tensor.grad.__get__: _grad,
    _tensor.grad.__set__: lambda weight, value: setattr(weight.learned, "grad", value),
    _tensor.grad.__delete__: lambda weight: setattr(weight.learned, "grad", None),
    torch.autograd.grad: _gradients,
    _tensor.retain_grad: lambda weight: None,
    **dict.fromkeys(_DETACH, _detach),
    _tensor.data.__set__: _set_data,
    _tensor.share_memory_: lambda weight: (weight.learned.share_memory_(), weight.frozen.share_memory_(), weight)[-1],
    _tensor.__format__: lambda weight, spec: object.__format__(weight, spec),
    _tensor.register_hook: _no_hook,
    _tensor.register_post_accumulate_grad_hook: _no_hook,
}
OVERRIDES.update(_ATTRIBUTES)
_OF_VIEWS: dict[Callable[..., Any], Callable[..., Any]] = {
    _tensor.data.__set__: _raising(NO_SET),
    **dict.fromkeys(_DETACH, _detach_view),
    torch.autograd.grad: _gradients,
    _tensor.grad.__get__: _grad_of_view,
    **{function: _watched(function) for function in (_tensor.retain_grad, _tensor.register_hook)},
}
VIEW_OVERRIDES.update(_OF_VIEWS)
