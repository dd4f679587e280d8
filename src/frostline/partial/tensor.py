"""A tensor of which only chosen elements learn, as people use it: `module.weight`.

Letters used for shapes in this file:
    V  rows of the table          *  the rest of its shape
    R  rows that learn            n  single entries that learn

A PartialTensor is the frozen part's own memory, under another name: an ordinary tensor that any code can read, C++
included. Memory keeps the learned values in it current. Its `grad_fn` takes of a gradient what belongs to the learned
part, so autograd, functions of other libraries and views of it need to know nothing:
    embedding, embedding_bag, linear    cost what they use, without a gradient of the whole tensor (see lookups.py)
    anything else                       runs on the memory; its gradient is as large as the tensor, and not kept
    a write, through views too          reaches the learned part before the call returns

Where the parts share no memory that may be written, the PartialTensor is a stand-in: each use of it runs on a merged
copy. That is so for traced tensors (torch.compile, torch.func), for the parts that FSDP2 gathers, for the detached ones
of `functional_call`, and for mapped files.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from frostline.errors import PartialTensorError
from frostline.partial.indices import LearnedIndices
from frostline.partial.memory import Memory
from frostline.partial.optimizer_guard import check_not_replaced

_plain = torch._C.DisableTorchFunctionSubclass  # a context in which `__torch_function__` of subclasses is not called

# The same whatever its values are, so the memory need not be current.
# fmt: off
_METADATA = {
    *(getattr(Tensor, name).__get__ for name in (
        "shape", "dtype", "device", "ndim", "layout", "itemsize", "nbytes", "is_cpu", "is_cuda", "is_mps", "is_xpu",
        "is_meta", "is_sparse", "is_quantized", "is_nested", "_version", "output_nr",
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

_TAKEN_BEFORE = (
    "a partial tensor was taken from its module before that was converted or loaded. "
    "Take it from the module again: module.weight."
)
_NO_SET = "the memory of a partial tensor cannot be replaced. Write to it with copy_, or call fl.merge(model) first."

_tensor: Any = Tensor
DETACH = {_tensor.data.__get__, _tensor.detach, torch.detach}

# torch function -> what a partial tensor does instead. It takes the same arguments, and returns NotImplemented where
# only the whole tensor will do. Filled by lookups.py and attributes.py, which import this file.
OVERRIDES: dict[Callable[..., Any], Callable[..., Any]] = {}


class _Partial(Tensor):
    """What a partial tensor and its views have in common: their memory cannot be replaced, a copy of them is plain."""

    def set_(self, *args: Any, **kwargs: Any) -> Any:  # torch does not ask `__torch_function__`
        """Raise: what is written to the new memory would not reach the partial tensor."""
        raise PartialTensorError(_NO_SET)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        with torch.no_grad():
            return self.clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        with torch.no_grad():
            return self.clone().__reduce_ex__(protocol)


class _Alias(torch.autograd.Function):
    """The memory of the frozen part, as a tensor of which the learned part gets its share of the gradient."""

    @staticmethod
    def forward(ctx: Any, learned: Tensor, parts: tuple[Tensor, LearnedIndices]) -> Tensor:
        frozen, ctx.indices = parts  # not arguments: hooks would run on the frozen part if other code lets it learn
        # Not `detach()`: autograd would take that for a view, and raise after every write.
        return Tensor._make_subclass(PartialTensor, frozen)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        dense = gradient.to_dense() if gradient.is_sparse else gradient
        return ctx.indices.gather(dense), None


_alias = _Alias.apply  # as it is now: explain patches `Function.apply` to follow the Functions of others


class PartialTensor(_Partial):
    """A tensor in two parts: `frozen` (V, *), which keeps every bit, and `learned` (R, *) or (n,), which learns.

    Made by `train_only`, and found where the module's weight was: `model.embed.weight`. It has the shape, dtype, device
    and values of the whole tensor and can be used as one. Its gradient is that of its learned part: `weight.grad` is
    `weight.learned.grad`.

    Attributes:
        frozen: The tensor as it was. Its values at learned positions are brought up to date when something reads them.
        learned: The Parameter that learns, in the order of the ids that were given.
        learned_indices: Where `learned` belongs in `frozen`.

    Example:
        >>> import frostline as fl
        >>> embedding = torch.nn.Embedding(5, 2)
        >>> plan = fl.train_only(embedding, {"weight": fl.rows([4])})
        >>> embedding.weight
        PartialTensor(5 x 2, float32, 1 of 5 rows learn)
    """

    frozen: Tensor
    learned: Tensor
    learned_indices: LearnedIndices
    memory: Memory
    stands_in: bool  # its own values are never read

    _is_param = True  # isinstance(weight, nn.Parameter) holds, so `get_parameter` and tying by name work

    @staticmethod
    def stand_in(frozen: Tensor, learned: Tensor, memory: Memory) -> PartialTensor:
        """Return a partial tensor of parts that share no memory that may be written; no memory is copied."""
        try:
            # Not `_make_wrapper_subclass`, which torch.compile cannot trace.
            tensor = frozen.detach().as_subclass(PartialTensor)
        except RuntimeError as error:
            if "FakeTensor" not in str(error):
                raise
            why = "torch.export cannot trace a partial tensor. Call fl.merge(model) first."
            raise PartialTensorError(why) from None
        _set_fields(tensor, frozen, learned, memory, stands_in=True)
        traced = torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None
        if not traced and torch.is_grad_enabled() and learned.requires_grad:
            # Code that gets past `__torch_function__` uses the stand-in's own memory, and its gradient would reach
            # neither part.
            with _plain():
                tensor.requires_grad_().register_hook(_lost_gradient)
        return tensor

    def is_current(self) -> bool:
        """Return whether this object can be used again: its memory and shape are those a new one would have."""
        with _plain():
            same = self.data_ptr() == self.frozen.data_ptr() and self.shape == self.frozen.shape
            same = same and self.dtype == self.frozen.dtype and self.requires_grad == self.learned.requires_grad
            return same and self._has_own_graph()

    def _has_own_graph(self) -> bool:
        """Return whether its gradient goes to the learned part; not after a write in place that autograd recorded."""
        return not self.requires_grad or isinstance(self.grad_fn, _Alias._backward_cls)

    def sync(self) -> None:
        """Make both parts hold the same values."""
        check_not_replaced(self.learned)
        if self.stands_in or torch.compiler.is_compiling():
            return
        with _plain():
            if not self._has_own_graph():
                why = "a partial tensor that learns was written to in place. Take it again: module.weight."
                raise PartialTensorError(why)
            same = (self.dtype, self.device, self.shape) == (self.frozen.dtype, self.frozen.device, self.frozen.shape)
            if not (same and self.memory.knows(self.frozen, self.learned)):
                raise PartialTensorError(_TAKEN_BEFORE)
            self.memory.sync(self.frozen, self.learned)
            if self.data_ptr() != self.frozen.data_ptr():  # the frozen part has moved, out of read-only memory
                self.data = self.frozen.data

    def merged(self) -> Tensor:
        """Return the whole tensor (V, *), through which `learned` gets its gradient; a copy only of a stand-in."""
        self.sync()
        with _plain():
            if not (self.stands_in or torch.compiler.is_compiling()):
                return self.view_as(self).as_subclass(Tensor)
            return self.learned_indices.merged(self.frozen, self.learned)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        size = " x ".join(f"{n:,}" for n in self.shape) or "scalar"
        kind, learned = self.learned_indices.kind, len(self.learned_indices)
        count = self.shape[0] if kind == "rows" else self.numel()
        return f"PartialTensor({size}, {str(self.dtype).removeprefix('torch.')}, {learned:,} of {count:,} {kind} learn)"

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` on the parts where that is possible, else on the whole tensor."""
        kwargs = kwargs or {}
        if (own := OVERRIDES.get(func)) is not None:
            with _plain():
                result = own(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if func in _METADATA:
            with _plain():
                return func(*args, **kwargs)
        return _run(func, args, kwargs)


def partial_tensor(memory: Memory, frozen: Tensor, learned: Tensor) -> PartialTensor:
    """Return the partial tensor of these parts: the last one made, if anything still refers to it, else a new one.

    The same object for all owners, because libraries detect a tie by `head.weight is embed.weight`.
    """
    last: PartialTensor | None = None if memory.shown is None else memory.shown()
    if last is not None and last.frozen is frozen and last.learned is learned and last.is_current():
        return last
    with torch.inference_mode(False), torch.enable_grad(), torch._C.DisableTorchFunction():
        made: PartialTensor = _alias(learned, (frozen, memory.indices))  # type: ignore[no-untyped-call]
    vars(made).update(vars(learned))  # attributes that other code gave to the Parameter: `no_weight_decay`
    _set_fields(made, frozen, learned, memory, stands_in=False)
    memory.shown = weakref.ref(made)
    return made


def _set_fields(tensor: PartialTensor, frozen: Tensor, learned: Tensor, memory: Memory, stands_in: bool) -> None:
    tensor.frozen, tensor.learned, tensor.learned_indices = frozen, learned, memory.indices
    tensor.memory, tensor.stands_in = memory, stands_in


class PartialView(_Partial):
    """A view of a partial tensor, such as `weight[1]` or `weight.detach()`: a write to it reaches both parts."""

    origin: PartialTensor
    made_at: int  # version of the learned part

    def __format__(self, spec: str) -> str:
        with torch.no_grad():
            return format(self.clone(), spec)

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`; see `_run`."""
        if func in _METADATA:
            with _plain():
                return func(*args, **(kwargs or {}))
        if func is _tensor.data.__set__:
            raise PartialTensorError(_NO_SET)
        if func in DETACH:
            check_no_new_parameter(sys._getframe(1))
            with _plain():
                return view(args[0].origin, Tensor._make_subclass(PartialView, args[0]))
        return _run(func, args, kwargs or {})


_KINDS = PartialTensor, PartialView


def view(origin: PartialTensor, tensor: Tensor) -> PartialView:
    """Return `tensor`, which shares the memory of `origin`, as a view of it."""
    made = tensor.as_subclass(PartialView)
    made.origin, made.made_at = origin, origin.learned._version
    return made


def _origin(value: PartialTensor | PartialView) -> PartialTensor:
    return value if isinstance(value, PartialTensor) else value.origin


def _run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `func` on the tensors as they are now; take over what it wrote, and return views as PartialViews."""
    if _may_write(func, kwargs):
        check_write(func, args, kwargs)
    if torch.compiler.is_compiling():
        with _plain():
            args, kwargs = tree_map(_merged, (args, kwargs))
            return func(*args, **kwargs)
    used = list(_partial_in((*args, *kwargs.values())))
    origins = {id(origin): origin for origin in map(_origin, used)}.values()
    for origin in origins:
        origin.sync()
    for value in used:
        if (
            isinstance(value, PartialView)
            and not _origin(value).stands_in
            and _storage(value) != _storage(value.origin)
        ):
            raise PartialTensorError(_TAKEN_BEFORE)
    versions = [origin.frozen._version for origin in origins]
    with _plain():
        memories: list[tuple[PartialTensor, Tensor]] = [(_origin(value), value) for value in used]
        if any(origin.stands_in for origin in origins):
            copies = {id(value): (value, value.merged()) for value in used if isinstance(value, PartialTensor)}
            args, kwargs = tree_map(
                lambda value: copies[id(value)][1] if id(value) in copies else value, (args, kwargs)
            )
            memories += copies.values()
        result = func(*args, **kwargs)
    uncounted = _may_write(func, kwargs) and torch.is_inference_mode_enabled()
    for origin, version in zip(origins, versions, strict=True):
        if not origin.stands_in and (uncounted or origin.frozen._version != version):
            if uncounted:
                torch.autograd.graph.increment_version(origin.frozen)
            origin.sync()
    if isinstance(result, Tensor):
        return _with_origin(result, memories)
    return tree_map(lambda value: _with_origin(value, memories), result)


def _partial_in(values: Iterable[Any]) -> Iterator[PartialTensor | PartialView]:
    """Yield the partial tensors and views among the arguments of a torch function."""
    for value in values:
        if isinstance(value, _KINDS):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _partial_in(value)


def _merged(value: Any) -> Any:
    if isinstance(value, PartialView):
        raise PartialTensorError(
            "a compiled function cannot use a view of a partial tensor from outside. Take it inside."
        )
    return value.merged() if isinstance(value, PartialTensor) else value


def _may_write(func: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
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
    for value in _partial_in((*args[:1], *kwargs.values())):
        if _origin(value).learned_indices.read_only:
            raise PartialTensorError("a mapped file is never written to. Choose rows that learn, and write to those.")
        if _origin(value).stands_in:
            raise PartialTensorError("a partial tensor cannot be written to here, where it is a copy.")
        if recorded and value.requires_grad:  # in a leaf torch would raise here too
            why = "a partial tensor that learns is written to in place. Do it under `torch.no_grad()`."
            raise PartialTensorError(why)


def _with_origin(value: Any, memories: list[tuple[PartialTensor, Tensor]]) -> Any:
    """Return the result `value`; as a PartialView if it shares the memory of a partial tensor, or of a copy of it."""
    if isinstance(value, np.ndarray):
        value.setflags(write=False)  # a write to it would be counted by nobody
    plain = isinstance(value, Tensor) and not isinstance(value, _KINDS) and value.layout == torch.strided
    if plain and value.numel() and not torch._C._functorch.is_functorch_wrapped_tensor(value):
        for origin, tensor in memories:  # not by `_base`, which a view of another dtype or in inference mode has not
            wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
            if not wrapped and _storage(value) == _storage(tensor):
                return view(origin, value)
    return value


def _storage(tensor: Tensor) -> int:
    with _plain():
        return int(tensor.untyped_storage()._cdata)


def check_no_new_parameter(caller: FrameType) -> None:
    """Raise if torch is about to make a Parameter of a partial tensor: of one part, for a module that has no plan."""
    if caller.f_code in (nn.Module.register_parameter.__code__, nn.Parameter.__new__.__code__):
        raise PartialTensorError(
            "a partial tensor has two parts, so it cannot become a Parameter of another module. Pass "
            "`weight.detach().clone()`; or call fl.merge(model), tie, convert or parametrize, and plan again."
        )


def _lost_gradient(gradient: Tensor) -> None:
    raise PartialTensorError(
        "a gradient reached a partial tensor as a whole, through an autograd.Function, where its parts share no memory "
        "(FSDP2, functional_call). Pass it `weight.clone()`."
    )
