"""A tensor of which only chosen entries learn.

Letters used for shapes in this file:
    V  rows of the table          *  the rest of its shape
    R  rows that learn            n  single entries that learn

A PartialTensor stands where a module's Parameter stood. It carries the two parts (see layout.py) and joins them only
where it must:
    embedding, embedding_bag, linear    never, under rows (lookups.py)
    shape, dtype, device, ...           never: answered by the frozen part
    a write                             reaches both parts, through views too, or raises
    anything else                       through the joined tensor, a copy: right, only slower
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from frostline.errors import PartialTensorError
from frostline.partial.indices import Layout, writable

_plain = torch._C.DisableTorchFunctionSubclass  # inside it, tensors behave as if they were no subclass

# Asked of the frozen part, so that looking at a shape copies no table.
# fmt: off
_DESCRIPTIONS = {
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

# The methods that write to a tensor, known by their names; asked while a compiler traces.
_WRITES = {Tensor.__setitem__} | {
    getattr(Tensor, name) for name in dir(Tensor) if name.endswith("_") and not name.endswith("__")
}

# Functions that know the two parts, filled by lookups.py: they take the arguments as they came and return
# NotImplemented where they must leave it to the joined tensor.
LOOKUPS: dict[Callable[..., Any], Callable[..., Any]] = {}


class PartialTensor(Tensor):
    """A tensor in two parts: `frozen` (V, *), which keeps every bit, and `learned` (R, *) or (n,), which learns.

    Made by `train_only`, and found where the module's weight was: `model.embed.weight`. It has the shape, dtype and
    device of the whole tensor and can be used as one. Its gradient is its learned part's: `weight.grad` is
    `weight.learned.grad`. To look at the whole tensor take `weight.detach().clone()`, a copy.

    Attributes:
        frozen: The tensor as it was. What stands in it at the learned places stands for nothing.
        learned: The Parameter that learns, in the order of the ids that were given.
        selected: The Layout, which says where `learned` belongs in `frozen`.

    Example:
        >>> import frostline as fl
        >>> embedding = torch.nn.Embedding(5, 2)
        >>> plan = fl.train_only(embedding, {"weight": fl.rows([4])})
        >>> embedding.weight
        PartialTensor(5 x 2, float32, 1 of 5 rows learn)
    """

    frozen: Tensor
    learned: Tensor
    selected: Layout

    _is_param = True  # isinstance(weight, nn.Parameter) holds, so `get_parameter` and tying by name work

    @staticmethod
    def of(frozen: Tensor, learned: Tensor, layout: Layout) -> PartialTensor:
        """The partial tensor of these parts; no memory is copied."""
        try:
            tensor = frozen.detach().as_subclass(PartialTensor)
        except RuntimeError as error:
            if "FakeTensor" not in str(error):
                raise
            raise PartialTensorError(
                "torch.export cannot trace a partial tensor. Call fl.merge(model) first."
            ) from None
        tensor.frozen, tensor.learned, tensor.selected = frozen, learned, layout
        if not torch.compiler.is_compiling() and isinstance(learned, nn.Parameter):
            _guard(tensor)
        return tensor

    def is_current(self) -> bool:
        """Whether one made now would be the same: over the same memory, and guarded where it has to be."""
        with _plain():
            guarded = self.requires_grad or not (torch.is_grad_enabled() and self.learned.requires_grad)
            return guarded and self.data_ptr() == self.frozen.data_ptr() and self.shape == self.frozen.shape

    def joined(self) -> Tensor:
        """The whole tensor (V, *), a copy; gradients flow to `learned`."""
        with _plain():
            return self.selected.join(self.frozen, self.learned)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        size = " x ".join(f"{n:,}" for n in self.shape) or "scalar"
        whole = self.shape[0] if self.selected.kind == "rows" else self.numel()
        dtype = str(self.dtype).removeprefix("torch.")
        return f"PartialTensor({size}, {dtype}, {len(self.selected):,} of {whole:,} {self.selected.kind} learn)"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run `func` on the parts where that is possible, else on the joined tensor."""
        kwargs = kwargs or {}
        lookup = LOOKUPS.get(func)
        if lookup is not None:
            result = lookup(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if func in _DESCRIPTIONS:
            with _plain():
                return func(args[0].frozen, *args[1:], **kwargs)
        own = _OWN.get(func)
        if own is not None:
            with _plain():
                return own(*args, **kwargs)
        if torch.compiler.is_compiling():
            return _run_joined_in_graph(func, args, kwargs)
        return _run_joined(func, args, kwargs)


class PartialView(Tensor):
    """A live view of a partial tensor, such as `weight[1]`: reads and writes go through to both parts."""

    origin: PartialTensor

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run `func` on the same view of the tensor as it is now."""
        return _run_joined(func, args, kwargs or {})

    def joined(self) -> Tensor:
        """This view of the joined tensor as it is now."""
        return self.over(self.origin.joined())

    def over(self, joined: Tensor) -> Tensor:
        """The same view of `joined`, the whole tensor."""
        with _plain():
            if joined.is_complex() and not self.is_complex():
                joined = torch.view_as_real(joined)
            elif self.dtype != joined.dtype:  # `weight.view(torch.int32)`: bits, without a gradient
                joined = joined.view(self.dtype)
            view = joined.as_strided(self.shape, self.stride(), self.storage_offset())
            view = view.conj() if self.is_conj() else view
            return torch._neg_view(view) if self.is_neg() else view


def _joined(value: Any) -> Any:
    return value.joined() if isinstance(value, PartialTensor | PartialView) else value


def _run_joined_in_graph(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`func` on joined tensors while a compiler traces, where a write can be told by its name only."""
    if func in _WRITES or "out" in kwargs:
        raise PartialTensorError("a partial tensor cannot be written to in a compiled function. Write to it outside.")
    with _plain():
        args, kwargs = tree_map(_joined, (args, kwargs))
        return func(*args, **kwargs)


def _run_joined(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`func` on joined copies. What it wrote goes back to both parts; views of a copy become live views."""
    grad = torch.is_grad_enabled()
    joined: dict[int, tuple[PartialTensor, Tensor]] = {}  # one copy of each tensor, however many views of it there are
    copies: dict[int, tuple[PartialTensor | PartialView, Tensor]] = {}

    def copy(value: Any) -> Any:
        if not isinstance(value, PartialTensor | PartialView):
            return value
        origin = _origin(value)
        with torch.inference_mode(False), torch.set_grad_enabled(grad):  # an inference tensor counts no writes
            if id(origin.frozen) not in joined:
                joined[id(origin.frozen)] = origin, origin.joined()
            whole = joined[id(origin.frozen)][1]
            plain = whole if isinstance(value, PartialTensor) else value.over(whole)
        return copies.setdefault(id(value), (value, plain))[1]

    with _plain():
        plain_args, plain_kwargs = tree_map(copy, (args, kwargs))
        before = {key: (whole._version, whole.grad_fn) for key, (_, whole) in joined.items()}
        result = func(*plain_args, **plain_kwargs)
        for key, (origin, whole) in joined.items():
            version, grad_fn = before[key]
            if whole._version != version:
                if whole.grad_fn is not grad_fn:  # autograd saw the write, as it would in a leaf
                    raise PartialTensorError(
                        "a partial tensor that learns is written to in place. Do it under `torch.no_grad()`."
                    )
                _write(origin, whole)
        return tree_map(lambda value: _with_origin(value, list(copies.values())), result)


def _with_origin(value: Any, copies: list[tuple[PartialTensor | PartialView, Tensor]]) -> Any:
    """`value`, an output computed from `copies`: if it shares memory with one, what stands for it outside."""
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
    """Catch a gradient that arrives for the tensor as a whole.

    What takes tensors past `__torch_function__` (`autograd.Function.apply`, reentrant checkpointing) would hand it a
    gradient that reaches no part, and nothing would learn there, silently.
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
    """Write the whole tensor `full` (V, *) into both parts of `weight`."""
    if full.shape != weight.frozen.shape:
        raise PartialTensorError(
            f"the new value has shape {tuple(full.shape)}, the partial tensor {tuple(weight.frozen.shape)}. "
            "To change the shape, call fl.merge(model) first."
        )
    if weight.selected.read_only:
        raise PartialTensorError("a mapped file is never written to. Write to what learns: weight.learned.")
    if full.dtype != weight.frozen.dtype:
        raise PartialTensorError(
            f"the new value is {full.dtype}, the partial tensor {weight.frozen.dtype}. Use `module.to(dtype)`."
        )
    with torch.no_grad():
        weight.selected.update(weight.learned, full)
        writable(weight.frozen)
        weight.frozen.copy_(full)


def _detach(weight: PartialTensor) -> PartialTensor:
    _sync(weight)
    return PartialTensor.of(weight.frozen, weight.learned.detach(), weight.selected)


def _sync(weight: PartialTensor) -> None:
    """Let the learned values stand in the frozen part too, for what reads memory: safetensors, DLPack."""
    if isinstance(weight.learned, nn.Parameter) and not weight.selected.read_only:
        weight.selected.put(writable(weight.frozen), weight.learned.detach())


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
    with torch.enable_grad():  # never None: registering it as a Parameter of another module is refused
        return weight.learned.view_as(weight.learned).grad_fn


def _set_data(weight: PartialTensor, value: Tensor) -> None:
    _write(_detach(weight), value)


def _refuse(advice: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PartialTensorError(advice)

    return refuse


_refuse_hook = _refuse("a hook on a partial tensor would never run. Register it on its learned part: weight.learned.")

_tensor: Any = Tensor
_OWN: dict[Callable[..., Any], Callable[..., Any]] = {
    _tensor.requires_grad.__get__: lambda weight: weight.learned.requires_grad,
    _tensor.requires_grad.__set__: _requires_grad_,
    _tensor.requires_grad_: _requires_grad_,
    _tensor.is_leaf.__get__: lambda weight: False,
    _tensor.grad_fn.__get__: _grad_fn,
    _tensor.grad.__get__: lambda weight: weight.learned.grad,
    _tensor.grad.__set__: lambda weight, value: setattr(weight.learned, "grad", value),
    _tensor.grad.__delete__: lambda weight: setattr(weight.learned, "grad", None),
    _tensor.data.__get__: _detach,
    _tensor.data.__set__: _set_data,
    _tensor.detach: _detach,
    torch.detach: _detach,
    _tensor.data_ptr: _synced(Tensor.data_ptr),
    _tensor.untyped_storage: _synced(Tensor.untyped_storage),
    _tensor.share_memory_: _share_memory_,
    _tensor.__format__: lambda weight, spec: object.__format__(weight, spec),
    _tensor.__deepcopy__: lambda weight, memo: weight.joined().detach(),
    _tensor.__reduce_ex__: lambda weight, protocol: weight.joined().detach().__reduce_ex__(protocol),
    _tensor.register_hook: _refuse_hook,
    _tensor.register_post_accumulate_grad_hook: _refuse_hook,
    _tensor.set_: _refuse("set_ would replace the joined copy only. Call fl.merge(model) first."),
    _tensor.resize_: _refuse("a partial tensor cannot be resized. Call fl.merge(model) first."),
}
