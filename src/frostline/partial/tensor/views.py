"""Views of a partial tensor, `weight[7]`, `weight.T`: their gradient goes straight to what learns.

Autograd would pass the gradient of a view on as one of the whole tensor, zeros but for the view: for one expert of
sixteen that is all sixteen, in each use. Here a view is the memory it shows, made by an `autograd.Function` of its own
whose backward takes of the view's gradient what belongs to the learned part.

A view in which nothing learns gets no gradient at all: see `_run_on_frozen` in dispatch.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from frostline.partial.tensor.dispatch import (
    VIEW_OVERRIDES,
    MemoryTensor,
    PartialView,
    is_watched,
    may_use_functions,
    memory_of,
    view,
)
from frostline.partial.tensor.lookups import index_rows
from frostline.partial.tensor.partial_tensor import OVERRIDES, PartialTensor
from frostline.partial.tensor.places import Places

_MOST_VIEWS = 256  # of one call, such as `unbind`: each costs some 20 microseconds


class _Shown(torch.autograd.Function):
    """The memory of a view, as a tensor of which the learned part gets its share of the gradient."""

    @staticmethod
    def forward(ctx: Any, learned: Tensor, parts: tuple[Tensor, Places, int]) -> Tensor:
        shown, ctx.places, offset = parts
        ctx.shape, ctx.dtype, ctx.view = learned.shape, learned.dtype, (offset, shown.shape, shown.stride())
        return Tensor._make_subclass(PartialView, shown)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        dense = gradient.to_dense() if gradient.is_sparse else gradient
        found = ctx.places.gather_from_view(dense, *ctx.view)
        if found is None:
            return gradient.new_zeros(()).expand(ctx.shape), None  # zeros, as of a plain tensor
        return found.view(ctx.shape).to(ctx.dtype), None


_shown = _Shown.apply  # as it is now: explain patches `Function.apply` to follow the Functions of others


def has_own_gradient(tensor: MemoryTensor) -> bool:
    """Return whether the gradient of `tensor`, a partial tensor or a view made here, goes straight to what learns.

    Not that of views which autograd made: one detached may be a leaf now, and elements of one expanded are the same.
    """
    return isinstance(tensor, PartialTensor) or isinstance(tensor.grad_fn, _Shown._backward_cls)


def _views(function: Callable[..., Any], tensor: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the views that `function` takes of `tensor`, each with a gradient of its own; else NotImplemented."""
    if not isinstance(tensor, MemoryTensor):  # `plain.view_as(weight)`
        return NotImplemented
    weight: PartialTensor = tensor.origin
    if weight.stands_in or not (torch.is_grad_enabled() and tensor.requires_grad) or not may_use_functions():
        return NotImplemented
    places = weight.learned_indices.places_in(weight.frozen)
    usual = has_own_gradient(tensor) and not (is_watched(tensor) or tensor.is_conj() or weight.is_meta)
    if not usual or places is None or not weight.numel():
        return NotImplemented
    weight.check_held(tensor)
    with torch.no_grad():
        taken = function(memory_of(tensor), *args, **kwargs)
    shown = [taken] if isinstance(taken, Tensor) else list(taken)
    storage = weight.frozen.untyped_storage()._cdata
    if len(shown) > _MOST_VIEWS or any(
        each.untyped_storage()._cdata != storage or each.dtype != weight.dtype for each in shown
    ):
        return NotImplemented  # `reshape` copies where it must; `view` may change the dtype
    made = [_view(weight, places, each) for each in shown]
    if isinstance(tensor, PartialView):
        tensor.passed_by = True
    return made[0] if isinstance(taken, Tensor) else type(taken)(made)


def _view(weight: PartialTensor, places: Places, shown: Tensor) -> PartialView:
    offset = int(shown.storage_offset()) - int(weight.frozen.storage_offset())
    first, last = places.within(offset, shown.shape, shown.stride())
    if first < last:
        weight.sync()
    made = view(weight, _shown(weight.learned, (shown, places, offset)))  # type: ignore[no-untyped-call]
    made.learns = first < last or not made.requires_grad
    return made


def _getitem(tensor: MemoryTensor, index: Any) -> Any:
    if isinstance(tensor, PartialTensor) and isinstance(index, Tensor) and index.ndim:
        return index_rows(tensor, index)
    parts = index if isinstance(index, tuple) else (index,)
    if all(_is_basic(part) for part in parts):
        return _views(Tensor.__getitem__, tensor, index)
    return NotImplemented


def _is_basic(part: Any) -> bool:
    if isinstance(part, Tensor):
        return type(part) is Tensor and part.ndim == 0 and part.dtype in (torch.int64, torch.int32)
    return part is None or part is Ellipsis or (isinstance(part, int | slice) and not isinstance(part, bool))


_NAMES = (
    "reshape t transpose permute select narrow unbind split chunk tensor_split unsqueeze squeeze flatten unflatten "
    "movedim moveaxis swapaxes swapdims diagonal"
)
_tensor: Any = Tensor
TAKEN: dict[Callable[..., Any], Callable[..., Any]] = {
    function: partial(_views, function)
    for name in _NAMES.split()
    for function in (getattr(Tensor, name), getattr(torch, name))
}
TAKEN |= {
    function: partial(_views, function)
    for function in (_tensor.T.__get__, _tensor.mT.__get__, _tensor.view_as, _tensor.view)
}
TAKEN[Tensor.__getitem__] = _getitem
OVERRIDES.update(TAKEN)
VIEW_OVERRIDES.update(TAKEN)
