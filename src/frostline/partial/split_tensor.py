"""A partial tensor of which tensor parallelism has split the frozen part over processes; each has all that learns.

Letters used for shapes in this file:
    V  rows of the tensor         D  width of a row
    R  rows that learn            *  any leading shape of ids or inputs

`parallelize_module` makes a weight a DTensor, of which each process holds a shard. Only the frozen part becomes one;
the learned part stays a plain Parameter, equal on every process. A forward gets both as a SplitTensor:
    embedding       each process looks up the ids of its own rows; the sum over the processes, which a frozen table
                    needs as well, is the lookup
    linear          each process multiplies by its shard, and overwrites the columns of the learned rows in it
    anything else   runs on a merged copy of the shard, as a DTensor; its gradient is as large as the shard
torch's own gradient of a table split by rows would be V x D on every process. What becomes of the gradient of each
process is said in shards.py.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from frostline.errors import PartialTensorError
from frostline.partial.sharded import local_part
from frostline.partial.shards import Share, own_part, share_of
from frostline.partial.tensor.attributes import check_no_new_parameter
from frostline.partial.tensor.dispatch import METADATA, may_write, plain
from frostline.partial.tensor.indices import LearnedIndices
from frostline.partial.tensor.lookups import check_max_norm, rows_of
from frostline.partial.tensor.memory import Memory
from frostline.partial.tensor.partial_tensor import PartialTensor
from frostline.partial.tensor.products import linear
from frostline.partial.tensor.views import TAKEN

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _eager(function: _Function) -> _Function:
    """Return `function`, run outside of compiled graphs. (`torch.compiler.disable` would import the compiler now.)"""
    return cast(_Function, torch._disable_dynamo(function))  # type: ignore[attr-defined]


_NO_WRITE = "a partial tensor that is split over processes cannot be written to here. Write to its learned part: "


class SplitTensor(DTensor):
    """A partial tensor of which tensor parallelism has split the frozen part: a DTensor of the whole.

    Attributes:
        frozen: The DTensor as it was. Its values at learned positions are those of the last checkpoint or plan.
        learned: The Parameter that learns, whole, on every process.
        learned_indices: Where `learned` belongs in `frozen`.
    """

    frozen: DTensor
    learned: Tensor
    learned_indices: LearnedIndices
    memory: Memory

    _is_param = True  # isinstance(weight, nn.Parameter) holds, so tying by name works

    def share(self) -> Share:
        """Return what of it this process holds."""
        self.memory.check_in_use()
        return share_of(self.memory, self.frozen)

    def local(self) -> PartialTensor:
        """Return the shard of this process as a PartialTensor of its own."""
        share = self.share()
        own = own_part(self.learned, share)
        return PartialTensor.stand_in(local_part(self.frozen), own, share.memory)

    def merged(self) -> DTensor:
        """Return the whole as a plain DTensor, through which `learned` gets its gradient. Cost: a copy of the shard."""
        frozen, local = self.frozen, self.local().merged()
        return _as_dtensor(local, frozen.device_mesh, frozen.placements, frozen.shape)

    def to_local(self, **kwargs: Any) -> Tensor:
        """Return a merged copy of this process's shard."""
        return self.merged().to_local(**kwargs)

    def full_tensor(self, **kwargs: Any) -> Tensor:
        """Return the whole, merged, on every process. All processes must call this."""
        return self.merged().full_tensor(**kwargs)

    def redistribute(self, *args: Any, **kwargs: Any) -> DTensor:
        """Return a merged copy with other placements. All processes must call this."""
        return self.merged().redistribute(*args, **kwargs)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        size = " x ".join(f"{n:,}" for n in self.frozen.shape)
        kind, learned = self.learned_indices.kind, len(self.learned_indices)
        return f"SplitTensor({size}, {self.frozen.placements}, {learned:,} {kind} learn)"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        with torch.no_grad():
            return self.merged()

    @classmethod
    @_eager
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` on the shard where that is possible, else on a merged copy of it."""
        kwargs = kwargs or {}
        with plain():
            if (own := _OVERRIDES.get(func)) is not None:
                result = own(*args, **kwargs)
                if result is not NotImplemented:
                    return result
            if func in METADATA:
                return func(*args, **kwargs)
        return _run(func, args, kwargs)


class SplitView(DTensor):
    """A result that shares memory with a merged copy, such as `weight.T`: read, never written to."""

    @classmethod
    @_eager
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, unless it writes."""
        return _run(func, args, kwargs or {})


def _run(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    if may_write(func, kwargs):
        raise PartialTensorError(f"{_NO_WRITE}weight.learned, on every process alike.")
    copies = []

    def read(value: Any) -> Any:
        if isinstance(value, SplitTensor):
            value = value.merged()
            copies.append(value._local_tensor)
        elif isinstance(value, SplitView):
            copies.append(value._local_tensor)
        return value

    args, kwargs = _mapped(read, args), _mapped(read, kwargs)
    storages = set(map(_storage, copies))

    def shown(value: Any) -> Any:
        shares = func in TAKEN or (type(value) is DTensor and _storage(value._local_tensor) in storages)
        if shares and type(value) is DTensor:  # a row of it may be on one process, and then it is copied to all
            value.__class__ = SplitView  # not `as_subclass`, which a tensor with a dispatch of its own has not
        return value

    with plain():
        return _mapped(shown, func(*args, **kwargs))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(function, each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(function, each) for each in value)
    return function(value)


@_eager
def split_tensor(memory: Memory, frozen: Any, learned: Tensor) -> SplitTensor:
    """Return the parts as one tensor: the last one made, if anything still refers to it, else a new one."""
    last: Any = None if memory.shown is None else memory.shown()
    if isinstance(last, SplitTensor) and last.frozen is frozen and last.learned is learned:
        with plain():
            converted = last.dtype != frozen.dtype or last.device != frozen.device
            if last.requires_grad == learned.requires_grad and not converted:
                return last
    with torch.inference_mode(False), plain():
        made: Any = SplitTensor(local_part(frozen), frozen._spec, requires_grad=learned.requires_grad)  # type: ignore[no-untyped-call]
        if learned.requires_grad:
            made.register_hook(_lost_gradient)
        made.frozen, made.learned, made.learned_indices, made.memory = frozen, learned, memory.indices, memory
    memory.shown = weakref.ref(made)
    return cast(SplitTensor, made)


def _lost_gradient(gradient: Tensor) -> None:
    raise PartialTensorError(
        "a gradient reached a partial tensor as a whole, through an autograd.Function, where it is split over "
        "processes. Pass it `weight.clone()`."
    )


def _split_along(weight: Any) -> int | None:
    """Return the dimension along which a matrix is split, if over one dimension of a mesh; None if that is not so."""
    if not isinstance(weight, SplitTensor) or weight.frozen.ndim != 2 or weight.frozen.device_mesh.ndim != 1:
        return None
    (placement,) = weight.frozen.placements
    return placement.dim if isinstance(placement, Shard) else None


def _embedding(
    input: Any,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """Look up ids (*), the same on every process: (*, D), as a sum over processes or split along D."""
    check_max_norm(max_norm)
    along = _split_along(weight)
    if along is None or not isinstance(input, DTensor) or weight.learned_indices.row_to_slot is None:
        return NotImplemented
    if scale_grad_by_freq:
        raise PartialTensorError("scale_grad_by_freq=True: no process sees how often an id occurs. Set it to False.")
    mesh, share, shape = weight.frozen.device_mesh, weight.share(), (*input.shape, weight.shape[1])
    ids = input.redistribute(placements=[Replicate()]).to_local()
    flat = ids.reshape(-1)
    positions = ((flat >= share.start) & (flat < share.stop)).nonzero().squeeze(1)
    found = flat.index_select(0, positions)
    own = own_part(weight.learned, share)
    parts = local_part(weight.frozen), share.indices.row_to_slot
    rows: Tensor = rows_of(own, parts, found - share.start, False)
    unknown = padding_idx is not None and padding_idx not in weight.learned_indices.padding
    if unknown and not weight.learned_indices.learn_padding:  # the plan did not know that it gets no gradient
        padding = padding_idx % weight.shape[0]
        rows = torch.where((found == padding).unsqueeze(1), rows.detach(), rows)
    if along == 1:
        return _as_dtensor(rows.view(*ids.shape, -1), mesh, (Shard(ids.ndim),), shape)
    out = rows.new_zeros(len(flat), rows.shape[1]).index_copy(0, positions, rows)
    return _as_dtensor(out.view(*ids.shape, -1), mesh, (Partial(),), shape)


def _linear(input: Any, weight: Any, bias: Any = None) -> Any:
    """Multiply (*, D) by the shard: (*, V), split along V, or as a sum over processes if D is split."""
    along = _split_along(weight)
    if along is None or not isinstance(input, DTensor) or input.device_mesh != weight.frozen.device_mesh:
        return NotImplemented
    mesh, shape = weight.frozen.device_mesh, (*input.shape[:-1], weight.shape[0])
    bias = bias.merged() if isinstance(bias, SplitTensor) else bias
    if along == 0:
        x = input.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
        own_bias = None if bias is None else bias.redistribute(placements=[Shard(0)]).to_local()
        return _as_dtensor(_product(x, weight.local(), own_bias), mesh, (Shard(len(shape) - 1),), shape)
    x = input.redistribute(placements=[Shard(input.ndim - 1)]).to_local()
    out = _as_dtensor(_product(x, weight.local(), None), mesh, (Partial(),), shape)
    return out if bias is None else out + bias


def _product(x: Tensor, shard: PartialTensor, bias: Tensor | None) -> Tensor:
    product = linear(x, shard, bias)
    return F.linear(x, shard.merged(), bias) if product is NotImplemented else product


def _as_dtensor(local: Tensor, mesh: Any, placements: Any, shape: Any) -> DTensor:
    """Return a DTensor of `shape` of which `local` is this process's shard; shards may differ in size."""
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride)


def _caller() -> FrameType:
    """Return the frame that asked `__torch_function__`, past those of `_eager`."""
    frame = sys._getframe(3)
    while frame.f_back is not None and frame.f_code.co_filename.endswith(("_compile.py", "eval_frame.py")):
        frame = frame.f_back
    return frame


def _detach(weight: SplitTensor) -> DTensor:
    check_no_new_parameter(_caller())
    with torch.no_grad():
        made = weight.merged()
    made.__class__ = SplitView
    return made


def _grad_fn(weight: SplitTensor) -> None:
    check_no_new_parameter(_caller())


def _requires_grad_(weight: SplitTensor, requires_grad: bool = True) -> SplitTensor:
    weight.learned.requires_grad_(requires_grad)
    return weight


def _raising(advice: str) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        raise PartialTensorError(advice)

    return run


_tensor: Any = Tensor
_ask_learned = "a partial tensor that is split over processes has no gradient of its own. Pass its learned part: "
_OVERRIDES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.embedding: _embedding,
    F.linear: _linear,
    _tensor.requires_grad.__get__: lambda weight: weight.learned.requires_grad,
    _tensor.requires_grad.__set__: _requires_grad_,
    _tensor.requires_grad_: _requires_grad_,
    _tensor.is_leaf.__get__: lambda weight: False,  # so that an optimizer that is given it raises an error
    _tensor.grad_fn.__get__: _grad_fn,
    _tensor.grad.__get__: lambda weight: weight.learned.grad,
    _tensor.grad.__set__: lambda weight, value: setattr(weight.learned, "grad", value),
    _tensor.grad.__delete__: lambda weight: setattr(weight.learned, "grad", None),
    _tensor.data.__set__: _raising(f"{_NO_WRITE}weight.learned."),
    torch.autograd.grad: _raising(f"{_ask_learned}weight.learned."),
    **dict.fromkeys((_tensor.data.__get__, _tensor.detach, torch.detach), _detach),
    **dict.fromkeys(
        (_tensor.register_hook, _tensor.register_post_accumulate_grad_hook, _tensor.retain_grad),
        _raising(f"{_ask_learned}weight.learned."),
    ),
}
