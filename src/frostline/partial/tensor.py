"""A tensor of which only chosen elements learn.

Letters used for shapes in this file:
    V  rows of the table          *  the rest of its shape
    R  rows that learn            n  single entries that learn

A PartialTensor takes the place of a module's Parameter. It carries a frozen and a learned part (see LearnedIndices),
and merges them only where it must:
    embedding, embedding_bag, linear    not merged, if rows learn (see LOOKUPS)
    shape, dtype, device, ...           not merged: answered by the frozen part
    a write                             reaches both parts, through views too, or raises
    anything else                       runs on the merged tensor, a copy: correct, only slower
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from frostline.errors import PartialTensorError
from frostline.partial.indices import LearnedIndices, writable
from frostline.partial.optimizer_guard import check_not_replaced

_plain = torch._C.DisableTorchFunctionSubclass  # a context in which `__torch_function__` of subclasses is not called

# Answered by the frozen part, so that reading a shape copies no table.
# fmt: off
_METADATA = {
    *(getattr(Tensor, name).__get__ for name in (
        "shape", "dtype", "device", "ndim", "layout", "itemsize", "nbytes", "is_cpu", "is_cuda", "is_mps", "is_xpu",
        "is_meta", "is_sparse", "is_quantized", "is_nested",
    )),
    *(getattr(Tensor, name) for name in (
        "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "element_size", "get_device",
        "is_floating_point", "is_complex", "is_contiguous", "is_pinned", "is_shared", "__len__", "__hash__",
    )),
}
# fmt: on

# Methods that write in place, found by their names. Used under a compiler only: traced tensors have no version counter.
_WRITES = {Tensor.__setitem__} | {
    getattr(Tensor, name) for name in dir(Tensor) if name.endswith("_") and not name.endswith("__")
}

# torch function -> the version that works on the two parts. It takes the same arguments, and returns NotImplemented
# where only the merged tensor will do. Filled by lookups.py, which imports this file.
LOOKUPS: dict[Callable[..., Any], Callable[..., Any]] = {}


class PartialTensor(Tensor):
    """A tensor in two parts: `frozen` (V, *), which keeps every bit, and `learned` (R, *) or (n,), which learns.

    Made by `train_only`, and found where the module's weight was: `model.embed.weight`. It has the shape, dtype and
    device of the whole tensor and can be used as one. Its gradient is that of its learned part: `weight.grad` is
    `weight.learned.grad`. To look at the whole tensor take `weight.detach().clone()`, a copy.

    Attributes:
        frozen: The tensor as it was. Values at learned positions are ignored.
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

    _is_param = True  # isinstance(weight, nn.Parameter) holds, so `get_parameter` and tying by name work

    @staticmethod
    def from_parts(frozen: Tensor, learned: Tensor, indices: LearnedIndices) -> PartialTensor:
        """Return the partial tensor of these parts; no memory is copied."""
        try:
            # Not `_make_wrapper_subclass`, which torch.compile cannot trace. The alias has the shape, dtype and address
            # of the frozen part, so C++ code that reads those without `__torch_function__` is right as well.
            tensor = frozen.detach().as_subclass(PartialTensor)
        except RuntimeError as error:
            if "FakeTensor" not in str(error):
                raise
            why = "torch.export cannot trace a partial tensor. Call fl.merge(model) first."
            raise PartialTensorError(why) from None
        if eager := not torch.compiler.is_compiling() and isinstance(learned, nn.Parameter):
            vars(tensor).update(vars(learned))  # attributes that other code gave to the Parameter: `no_weight_decay`
        tensor.frozen, tensor.learned, tensor.learned_indices = frozen, learned, indices
        if eager:
            _guard(tensor)
        return tensor

    def is_current(self) -> bool:
        """Return whether this object can be used again: its memory, shape and guard are those a new one would have."""
        with _plain():
            guarded = self.requires_grad or not (torch.is_grad_enabled() and self.learned.requires_grad)
            return guarded and self.data_ptr() == self.frozen.data_ptr() and self.shape == self.frozen.shape

    def merged(self) -> Tensor:
        """Return the whole tensor (V, *), a copy through which `learned` gets its gradient."""
        check_not_replaced(self.learned)
        with _plain():
            return self.learned_indices.merged(self.frozen, self.learned)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        size = " x ".join(f"{n:,}" for n in self.shape) or "scalar"
        kind, learned = self.learned_indices.kind, len(self.learned_indices)
        count = self.shape[0] if kind == "rows" else self.numel()
        return f"PartialTensor({size}, {str(self.dtype).removeprefix('torch.')}, {learned:,} of {count:,} {kind} learn)"

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` on the parts where that is possible, else on the merged tensor."""
        kwargs = kwargs or {}
        lookup = LOOKUPS.get(func)
        if lookup is not None:
            result = lookup(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if func in _METADATA:
            with _plain():
                return func(args[0].frozen, *args[1:], **kwargs)
        if (own := _OVERRIDES.get(func)) is not None:
            with _plain():
                return own(*args, **kwargs)
        if torch.compiler.is_compiling():
            return _run_merged_in_graph(func, args, kwargs)
        return _run_merged(func, args, kwargs)


class PartialView(Tensor):
    """A view of a partial tensor, such as `weight[1]`: reads see both parts as they are now, writes reach both.

    Its own memory is a view of an old merged copy, and only says which view it is (shape, strides, offset). Its values
    may be out of date, so nothing reads them: each use takes the same view of a new merged copy.
    """

    origin: PartialTensor

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` on the same view of the tensor as it is now."""
        return _run_merged(func, args, kwargs or {})

    def merged(self) -> Tensor:
        """Return this view of the merged tensor as it is now."""
        return self.over(self.origin.merged())

    def over(self, merged: Tensor) -> Tensor:
        """Return the same view of `merged`, the whole tensor."""
        with _plain():
            if merged.is_complex() and not self.is_complex():
                merged = torch.view_as_real(merged)
            elif self.dtype != merged.dtype:  # `weight.view(torch.int32)`: bits, without a gradient
                merged = merged.view(self.dtype)
            view = merged.as_strided(self.shape, self.stride(), self.storage_offset())
            view = view.conj() if self.is_conj() else view
            return torch._neg_view(view) if self.is_neg() else view


def _merged(value: Any) -> Any:
    return value.merged() if isinstance(value, PartialTensor | PartialView) else value


def _run_merged_in_graph(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `func` on merged tensors while a compiler traces, which can recognize a write only by its name."""
    if func in _WRITES or "out" in kwargs:
        raise PartialTensorError("a partial tensor cannot be written to in a compiled function. Write to it outside.")
    with _plain():
        args, kwargs = tree_map(_merged, (args, kwargs))
        return func(*args, **kwargs)


def _run_merged(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `func` on merged copies; write back to both parts what it wrote, and return views as PartialViews.

    Writes are noticed by autograd's version counter, because `func` may write through an argument, `out=` or a view.
    """
    grad = torch.is_grad_enabled()
    # One copy for all views, but `weight` and `weight.detach()` have their own: only the first gets a gradient.
    merged: dict[tuple[int, int], tuple[PartialTensor, Tensor]] = {}
    copies: dict[int, tuple[PartialTensor | PartialView, Tensor]] = {}

    def copy(value: Any) -> Any:
        if not isinstance(value, PartialTensor | PartialView):
            return value
        origin = _origin(value)
        with torch.inference_mode(False), torch.set_grad_enabled(grad):  # an inference tensor counts no writes
            key = id(origin.frozen), id(origin.learned)
            if key not in merged:
                merged[key] = origin, origin.merged()
            whole = merged[key][1]
            plain = whole if isinstance(value, PartialTensor) else value.over(whole)
        return copies.setdefault(id(value), (value, plain))[1]

    with _plain():
        plain_args, plain_kwargs = tree_map(copy, (args, kwargs))
        before = {key: (whole._version, whole.grad_fn) for key, (_, whole) in merged.items()}
        result = func(*plain_args, **plain_kwargs)
        for key, (origin, whole) in merged.items():
            version, grad_fn = before[key]
            if whole._version != version:
                if whole.grad_fn is not grad_fn:  # autograd recorded the write; in a leaf torch would raise here too
                    why = "a partial tensor that learns is written to in place. Do it under `torch.no_grad()`."
                    raise PartialTensorError(why)
                _write(origin, whole)
        return tree_map(lambda value: _with_origin(value, list(copies.values())), result)


def _with_origin(value: Any, copies: list[tuple[PartialTensor | PartialView, Tensor]]) -> Any:
    """Return the output `value`: the original if it is one of `copies`, a PartialView if it is a view of one."""
    if isinstance(value, np.ndarray):
        value.setflags(write=False)  # it may share memory with a copy, where a write would be lost
    if not isinstance(value, Tensor):
        return value
    for source, plain in copies:
        if value is plain:
            return source
        if value._is_view() and value._base is _base(plain):
            view = value.as_subclass(PartialView)
            view.origin = _origin(source)
            return view
    return value


def _guard(weight: PartialTensor) -> None:
    """Raise in backward if a gradient arrives for the tensor as a whole.

    Code that gets past `__torch_function__` (`autograd.Function.apply`, reentrant checkpointing) uses the memory of the
    frozen part. Its gradient would reach neither part, silently. So the alias requires a gradient, and has a hook that
    runs if one arrives. (functorch's transforms allow no hook.)
    """
    learns = torch.is_grad_enabled() and weight.learned.requires_grad
    if learns and torch._C._functorch.peek_interpreter_stack() is None:
        with _plain():
            weight.requires_grad_().register_hook(_lost_gradient)


def _lost_gradient(gradient: Tensor) -> None:
    raise PartialTensorError(
        "a gradient reached a partial tensor as a whole, through an autograd.Function or a reentrant checkpoint. "
        "Pass it `weight.clone()`, or use checkpoint(..., use_reentrant=False)."
    )


def _origin(source: PartialTensor | PartialView) -> PartialTensor:
    return source if isinstance(source, PartialTensor) else source.origin


def _base(tensor: Tensor) -> Tensor:
    return tensor._base if tensor._is_view() else tensor  # type: ignore[return-value]


def _write(weight: PartialTensor, full: Tensor) -> None:
    """Write the whole tensor `full` (V, *) to both parts of `weight`."""
    if full.shape != weight.frozen.shape:
        raise PartialTensorError(
            f"the new value has shape {tuple(full.shape)}, the partial tensor {tuple(weight.frozen.shape)}. "
            "To change the shape, call fl.merge(model) first."
        )
    if weight.learned_indices.read_only:
        raise PartialTensorError("a mapped file is never written to. Write to what learns: weight.learned.")
    if full.dtype != weight.frozen.dtype:
        why = f"the new value is {full.dtype}, the partial tensor {weight.frozen.dtype}. Use `module.to(dtype)`."
        raise PartialTensorError(why)
    with torch.no_grad():
        weight.learned_indices.update(weight.learned, full)
        writable(weight.frozen)
        weight.frozen.copy_(full)


def _detach(weight: PartialTensor) -> PartialTensor:
    _sync(weight)
    # Its parts, not a merged copy: `weight.data.fill_(0)` and `weight.detach()[1] = 0` have to write through.
    return PartialTensor.from_parts(weight.frozen, weight.learned.detach(), weight.learned_indices)


def _sync(weight: PartialTensor) -> None:
    """Copy the learned values into the frozen part too, for code that reads its memory: safetensors, DLPack."""
    check_not_replaced(weight.learned)
    if isinstance(weight.learned, nn.Parameter) and not weight.learned_indices.read_only:
        weight.learned_indices.scatter_(writable(weight.frozen), weight.learned.detach())


def _synced(func: Callable[..., Any]) -> Callable[..., Any]:
    def run(weight: PartialTensor) -> Any:
        _sync(weight)
        return func(weight.frozen)

    return run


def _share_memory_(weight: PartialTensor) -> PartialTensor:
    weight.frozen.share_memory_()
    weight.learned.share_memory_()
    return weight


def _requires_grad_(weight: PartialTensor, requires_grad: bool = True) -> PartialTensor:
    weight.learned.requires_grad_(requires_grad)
    return weight


def _grad_fn(weight: PartialTensor) -> Any:
    with torch.enable_grad():  # never None, so that nn.Module refuses to register it as a plain Parameter
        return weight.learned.view_as(weight.learned).grad_fn


def _raising(advice: str) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        raise PartialTensorError(advice)

    return run


_no_hook = _raising("a hook on a partial tensor would never run. Register it on its learned part: weight.learned.")

# Attributes and methods of Tensor that must not see a merged copy, or whose result there would be wrong.
_tensor: Any = Tensor
_OVERRIDES: dict[Callable[..., Any], Callable[..., Any]] = {
    _tensor.requires_grad.__get__: lambda weight: weight.learned.requires_grad,
    _tensor.requires_grad.__set__: _requires_grad_,
    _tensor.requires_grad_: _requires_grad_,
    _tensor.is_leaf.__get__: lambda weight: False,  # so that an optimizer that is given it raises an error
    _tensor.grad_fn.__get__: _grad_fn,
    _tensor.grad.__get__: lambda weight: weight.learned.grad,
    _tensor.grad.__set__: lambda weight, value: setattr(weight.learned, "grad", value),
    _tensor.grad.__delete__: lambda weight: setattr(weight.learned, "grad", None),
    _tensor.data.__get__: _detach,
    _tensor.data.__set__: lambda weight, value: _write(_detach(weight), value),
    _tensor.detach: _detach,
    torch.detach: _detach,
    _tensor.data_ptr: _synced(Tensor.data_ptr),
    _tensor.untyped_storage: _synced(Tensor.untyped_storage),
    _tensor.share_memory_: _share_memory_,
    _tensor.__format__: lambda weight, spec: object.__format__(weight, spec),
    _tensor.__deepcopy__: lambda weight, memo: weight.merged().detach(),
    _tensor.__reduce_ex__: lambda weight, protocol: weight.merged().detach().__reduce_ex__(protocol),
    _tensor.register_hook: _no_hook,
    _tensor.register_post_accumulate_grad_hook: _no_hook,
    _tensor.set_: _raising("set_ would replace the merged copy only. Call fl.merge(model) first."),
    _tensor.resize_: _raising("a partial tensor cannot be resized. Call fl.merge(model) first."),
}
