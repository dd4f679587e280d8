"""Run torch functions on partial tensors and on views of them: reads are current, writes reach both parts.

Nearly every use of a weight arrives here, through `__torch_function__`. What is read is brought up to date first; what
was written is taken over by the learned part before the call returns; a result that shares the memory is a PartialView.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map

from frostline.errors import PartialTensorError
from frostline.partial.tensor.memory import version_of

plain = torch._C.DisableTorchFunctionSubclass  # a context in which `__torch_function__` of subclasses is not called

# The same whatever its values are, so the memory need not be current.
# fmt: off
METADATA = {
    *(getattr(Tensor, name).__get__ for name in (
        "shape", "dtype", "device", "ndim", "layout", "itemsize", "nbytes", "is_cpu", "is_cuda", "is_mps", "is_xpu",
        "is_meta", "is_sparse", "is_quantized", "is_nested", "_version", "output_nr", "requires_grad", "is_leaf",
        "grad_fn", "retains_grad",
    )),
    *(getattr(Tensor, name) for name in (
        "size", "ndimension", "numel", "nelement", "stride", "storage_offset", "element_size", "get_device",
        "is_floating_point", "is_complex", "is_contiguous", "is_pinned", "is_shared", "__len__", "__hash__",
    )),
}
# fmt: on

# Methods that write in place, as a compiler that traces can compare them.
_WRITES = {Tensor.__setitem__} | {
    getattr(Tensor, name) for name in dir(Tensor) if name.endswith("_") and not name.endswith("__")
}

TAKEN_BEFORE = (
    "a partial tensor was taken from its module before that was converted or loaded. "
    "Take it from the module again: module.weight."
)
NO_SET = "the memory of a partial tensor cannot be replaced. Write to it with copy_, or call fl.merge(model) first."


class MemoryTensor(Tensor):
    """Base of PartialTensor and PartialView: its memory cannot be replaced, and a copy of it is a plain tensor."""

    origin: Any  # the PartialTensor whose memory this is
    learns: bool = True  # whether elements that learn may be among those it shows

    def set_(self, *args: Any, **kwargs: Any) -> Any:  # torch does not ask `__torch_function__`
        """Raise: what is written to the new memory would not reach the partial tensor."""
        raise PartialTensorError(NO_SET)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        with torch.no_grad():
            return self.clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        with torch.no_grad():
            return self.clone().__reduce_ex__(protocol)


class PartialView(MemoryTensor):
    """A view of a partial tensor, such as `weight[1]` or `weight.detach()`: a write to it reaches both parts."""

    made_at: int  # version of the learned part of its origin
    passed_by: bool = False  # whether the gradient of something made of it goes straight to what learns

    def __format__(self, spec: str) -> str:
        with torch.no_grad():
            return format(self.clone(), spec)

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`; see `run`."""
        kwargs = kwargs or {}
        if (own := VIEW_OVERRIDES.get(func)) is not None:
            with plain():
                result = own(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return run(func, args, kwargs)


# The same for views as OVERRIDES for partial tensors. Filled by attributes.py.
VIEW_OVERRIDES: dict[Callable[..., Any], Callable[..., Any]] = {}


def view(origin: Any, tensor: Tensor) -> PartialView:
    """Return `tensor`, which shares the memory of `origin`, as a view of it."""
    made = tensor if isinstance(tensor, PartialView) else tensor.as_subclass(PartialView)
    made.origin, made.made_at = origin, version_of(origin.learned)
    return made


def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `func` on the tensors as they are now; take over what it wrote, and return views as PartialViews."""
    if func in METADATA:
        with plain():
            return func(*args, **kwargs)
    writes = may_write(func, kwargs)
    if writes:
        check_write(func, args, kwargs)
    if torch.compiler.is_compiling():
        with plain():
            args, kwargs = tree_map(_merged, (args, kwargs))
            return func(*args, **kwargs)
    used = list(_partial_in((*args, *kwargs.values())))
    frozen = [] if writes else [value for value in used if not (value.learns or is_watched(value))]
    if frozen and may_use_functions() and not _uses_metadata(func):
        return _run_on_frozen(func, args, kwargs, frozen)
    origins = {id(origin): origin for origin in (value.origin for value in used)}.values()
    for origin in origins:
        origin.sync(to_write=writes)
    for value in used:
        origin = value.origin
        if not origin.stands_in and _storage(value) != _storage(origin):
            raise PartialTensorError(TAKEN_BEFORE)
        if origin.stands_in and isinstance(value, PartialView) and value.made_at != version_of(origin.learned):
            raise PartialTensorError("a view of a copy was taken before what learns has changed. Take it again.")
    versions = [version_of(origin.frozen) for origin in origins]
    with plain():
        memories: list[tuple[Any, Tensor]] = [(value.origin, value) for value in used]
        if any(origin.stands_in for origin in origins):
            copies = {
                id(value): (value.origin, value.origin.merged()) for value in used if not isinstance(value, PartialView)
            }
            args, kwargs = tree_map(lambda value: copies.get(id(value), (0, value))[1], (args, kwargs))
            memories += copies.values()
        result = func(*args, **kwargs)
    uncounted = writes and torch.is_inference_mode_enabled()
    for origin, version in zip(origins, versions, strict=True):
        if not origin.stands_in and (uncounted or version_of(origin.frozen) != version):
            if uncounted:
                torch.autograd.graph.increment_version(origin.frozen)
            origin.sync()
    if isinstance(result, Tensor):
        return _with_origin(result, memories)
    first = result
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    if isinstance(first, Tensor | np.ndarray):  # not the numbers of `tolist()`, one by one
        return tree_map(lambda value: _with_origin(value, memories), result)
    return result


class _Zero(torch.autograd.Function):
    """A zero made of what learns: what depends on it takes part in a backward, and gives it a gradient of zeros.

    Without it that could be None, and an optimizer with momentum would not move what learns in such a step.
    """

    @staticmethod
    def forward(ctx: Any, learned: Tensor) -> Tensor:
        ctx.shape = learned.shape
        return learned.new_zeros(())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient.expand(ctx.shape)


class _WithZero(torch.autograd.Function):
    """What was computed of rows that are frozen, as the result of a weight of which other rows learn."""

    @staticmethod
    def forward(ctx: Any, zero: Tensor, tensor: Tensor) -> Tensor:
        ctx.save_for_backward(zero)
        return memory_of(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return torch.zeros_like(*ctx.saved_tensors), gradient


_zero, _with_zero = _Zero.apply, _WithZero.apply  # now: explain patches `Function.apply` to follow others' Functions


def _run_on_frozen(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], views: list[Any]) -> Any:
    """Run `func` with views in which nothing learns as plain frozen tensors: no gradient is computed of them."""
    memories: dict[int, tuple[Any, Tensor]] = {id(value): (value.origin, memory_of(value)) for value in views}
    for value in views:
        value.origin.check_held(value)
        value.passed_by = True
    args, kwargs = _mapped(lambda value: memories.get(id(value), (0, value))[1], (args, kwargs))
    result = func(*args, **kwargs)

    def shown(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return _with_origin(value, [])
        made = not isinstance(value, MemoryTensor) and (value.is_floating_point() or value.is_complex())
        if made and torch.is_grad_enabled():
            weight = views[0].origin
            if weight.zero is None or weight.zero.requires_grad != weight.learned.requires_grad:
                weight.zero = _zero(weight.learned)  # type: ignore[no-untyped-call]
            value = _with_zero(weight.zero, value)  # type: ignore[no-untyped-call]
        value = _with_origin(value, list(memories.values()))
        if isinstance(value, PartialView):
            with plain():
                value.learns = not value.requires_grad
        return value

    return _mapped(shown, result)


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Return `value` with `function` of each tensor in it. Quicker than `tree_map`, and leaves no reference cycles."""
    if isinstance(value, Tensor | np.ndarray):
        return function(value)
    if isinstance(value, dict):
        return {key: _mapped(function, each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        each = [_mapped(function, each) for each in value]
        return value._make(each) if hasattr(value, "_make") else type(value)(each)
    return value


def _uses_metadata(func: Callable[..., Any]) -> bool:
    """Return whether a result of `func` may not depend on the values of a view that it is given: told by names."""
    name = getattr(func, "__name__", "")
    others = ("to", "type", "backward", "broadcast_tensors", "meshgrid", "atleast_1d", "atleast_2d", "atleast_3d")
    return name.endswith(("_like", "_as")) or name.startswith("new_") or name in others


def is_traced() -> bool:
    """Return whether torch.compile, torch.func or torch.jit.trace records what is computed now."""
    functional = torch._C._functorch.peek_interpreter_stack() is not None
    return torch.compiler.is_compiling() or functional or torch._C._get_tracing_state() is not None


def may_use_functions() -> bool:
    """Return whether an `autograd.Function` can run now: not while traced, nor in forward mode, which needs more."""
    return not (is_traced() or forward_ad._current_level >= 0)


def memory_of(tensor: Tensor) -> Tensor:
    """Return the memory of a partial tensor, or of a view of one, as a plain tensor that needs no gradient."""
    return Tensor._make_subclass(Tensor, tensor)


def is_watched(tensor: Tensor) -> bool:
    """Return whether other code waits for the gradient of `tensor`, which must then pass through it."""
    with plain():
        return bool(tensor._backward_hooks) or tensor.retains_grad


def _partial_in(values: Iterable[Any]) -> Iterator[MemoryTensor]:
    """Yield the partial tensors and views among the arguments of a torch function."""
    for value in values:
        if isinstance(value, MemoryTensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _partial_in(value)


def _merged(value: Any) -> Any:
    if isinstance(value, PartialView):
        raise PartialTensorError(
            "a compiled function cannot use a view of a partial tensor from outside. Take it inside."
        )
    return value.origin.merged() if isinstance(value, MemoryTensor) else value


def may_write(func: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    """Return whether `func` writes in place: told by names, so that it can be refused before it is done."""
    if torch.compiler.is_compiling():
        return func in _WRITES or "out" in kwargs
    name = getattr(func, "__name__", "")
    by_name = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    return by_name or kwargs.get("out") is not None or bool(kwargs.get("inplace"))


def check_write(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise if `func` is about to write where nothing may be written."""
    if torch.compiler.is_compiling():
        raise PartialTensorError("a partial tensor cannot be written to in a compiled function. Write to it outside.")
    if func.__name__.startswith(("resize_", "t_", "transpose_", "swap", "squeeze_", "unsqueeze_")):
        raise PartialTensorError("a partial tensor cannot be resized. Call fl.merge(model) first.")
    recorded = torch.is_grad_enabled() and getattr(func, "__module__", None) != "torch.nn.init"
    written = [kwargs["out"]] if kwargs.get("out") is not None else [*args[:1], *kwargs.values()]
    for value in _partial_in(written):
        if value.origin.learned_indices.read_only:
            raise PartialTensorError("a mapped file is never written to. Choose rows that learn, and write to those.")
        if value.origin.stands_in:
            raise PartialTensorError("a partial tensor cannot be written to here, where it is a copy.")
        if recorded and value.requires_grad:  # in a leaf torch would raise here too
            why = "a partial tensor that learns is written to in place. Do it under `torch.no_grad()`."
            raise PartialTensorError(why)


def _with_origin(value: Any, memories: list[tuple[Any, Tensor]]) -> Any:
    """Return the result `value`; as a PartialView if it shares the memory of a partial tensor, or of a copy of it."""
    if isinstance(value, np.ndarray):
        value.setflags(write=False)  # a write to it would be counted by nobody
    strided = isinstance(value, Tensor) and not isinstance(value, MemoryTensor) and value.layout == torch.strided
    if strided and value.numel() and not torch._C._functorch.is_functorch_wrapped_tensor(value):
        for origin, tensor in memories:  # not by `_base`, which a view of another dtype or in inference mode has not
            wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
            if not wrapped and _storage(value) == _storage(tensor):
                return view(origin, value)
    return value


def _storage(tensor: Tensor) -> int:
    with plain():
        return int(tensor.untyped_storage()._cdata)
