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
copy. That is so for traced tensors (torch.compile, torch.func, torch.jit.trace), for the parts that FSDP2 gathers, for
the detached ones of `functional_call`, and for mapped files.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from frostline.errors import PartialTensorError
from frostline.partial.tensor.dispatch import TAKEN_BEFORE, MemoryTensor, is_traced, plain, run
from frostline.partial.tensor.indices import LearnedIndices
from frostline.partial.tensor.memory import Memory

# torch function -> what a partial tensor does instead. It takes the same arguments, and returns NotImplemented where
# only the whole tensor will do. Filled by lookups.py and attributes.py, which import this file.
OVERRIDES: dict[Callable[..., Any], Callable[..., Any]] = {}


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


class PartialTensor(MemoryTensor):
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
    zero: Tensor | None = None  # made of what learns; see dispatch.py

    _is_param = True  # isinstance(weight, nn.Parameter) holds, so `get_parameter` and tying by name work

    @property
    def origin(self) -> PartialTensor:
        """The partial tensor itself."""
        return self

    @staticmethod
    def stand_in(frozen: Tensor, learned: Tensor, memory: Memory) -> PartialTensor:
        """Return a partial tensor of parts that share no memory that may be written; no memory is copied."""
        if torch._C._get_tracing_state() is not None and _is_onnx_export():
            raise PartialTensorError("torch.onnx.export cannot trace a partial tensor. Call fl.merge(model) first.")
        try:
            # Not `_make_wrapper_subclass`, which torch.compile cannot trace.
            tensor = frozen.detach().as_subclass(PartialTensor)
        except RuntimeError as error:
            if "FakeTensor" not in str(error):
                raise
            why = "torch.export cannot trace a partial tensor. Call fl.merge(model) first."
            raise PartialTensorError(why) from None
        _set_fields(tensor, frozen, learned, memory, stands_in=True)
        if not is_traced() and torch.is_grad_enabled() and learned.requires_grad:
            # Code that gets past `__torch_function__` uses the stand-in's own memory, and its gradient would reach
            # neither part.
            with plain():
                tensor.requires_grad_().register_hook(_lost_gradient)
        return tensor

    def is_current(self) -> bool:
        """Return whether this object can be used again: its memory and shape are those a new one would have."""
        with plain():
            same = self.data_ptr() == self.frozen.data_ptr() and self.shape == self.frozen.shape
            same = same and self.dtype == self.frozen.dtype and self.requires_grad == self.learned.requires_grad
            return same and self._has_own_graph()

    def _has_own_graph(self) -> bool:
        """Return whether its gradient goes to the learned part; not after a write in place that autograd recorded."""
        return not self.requires_grad or isinstance(self.grad_fn, _Alias._backward_cls)

    def check_is_no_leaf(self) -> None:
        """Raise if its own gradient was asked for, as if it were a Parameter: nothing would learn of it."""
        with plain():
            if self.retains_grad:
                given = "backward(inputs=...) was given a partial tensor, not a leaf."
                raise PartialTensorError(f"{given} Pass its learned part: weight.learned.")

    def check_held(self, view: Tensor | None = None) -> None:
        """Raise if it, or a view of it, was taken from its module before something that replaced its memory."""
        self.memory.check_in_use()
        if self.stands_in or torch.compiler.is_compiling():
            return
        with plain():
            here, frozen = self if view is None else view, self.frozen
            same = self.dtype == frozen.dtype and self.device == frozen.device and self.shape == frozen.shape
            same = same and here.untyped_storage()._cdata == frozen.untyped_storage()._cdata
            if not (same and self.memory.knows(frozen, self.learned)):
                raise PartialTensorError(TAKEN_BEFORE)

    def sync(self, to_write: bool = False) -> None:
        """Make both parts hold the same values; `to_write` if code is about to write to the memory."""
        self.memory.check_in_use()
        if self.stands_in or torch.compiler.is_compiling():
            return
        with plain():
            frozen = self.frozen
            if not self._has_own_graph():
                why = "a partial tensor that learns was written to in place. Take it again: module.weight."
                raise PartialTensorError(why)
            same = self.dtype == frozen.dtype and self.device == frozen.device and self.shape == frozen.shape
            if not (same and self.memory.knows(frozen, self.learned)):
                raise PartialTensorError(TAKEN_BEFORE)
            self.memory.sync(frozen, self.learned)
            if to_write:
                self.memory.make_writable(frozen)
            if self.data_ptr() != frozen.data_ptr():  # the frozen part has moved, out of read-only memory
                self.data = frozen.data

    def merged(self) -> Tensor:
        """Return the whole tensor (V, *), through which `learned` gets its gradient; a copy only of a stand-in."""
        self.sync()
        with plain():
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
            with plain():
                result = own(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return run(func, args, kwargs)


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


def _is_onnx_export() -> bool:
    """Return whether torch.onnx exports now, by its TorchScript exporter or its newer one; it is loaded then."""
    onnx: Any = sys.modules.get("torch.onnx")
    return onnx is not None and bool(onnx.is_in_onnx_export())


def _set_fields(tensor: PartialTensor, frozen: Tensor, learned: Tensor, memory: Memory, stands_in: bool) -> None:
    tensor.frozen, tensor.learned, tensor.learned_indices = frozen, learned, memory.indices
    tensor.memory, tensor.stands_in = memory, stands_in


def _lost_gradient(gradient: Tensor) -> None:
    raise PartialTensorError(
        "a gradient reached a partial tensor as a whole, through an autograd.Function, where its parts share no memory "
        "(FSDP2, functional_call). Pass it `weight.clone()`."
    )
