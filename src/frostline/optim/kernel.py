"""The update functions of reference.py, in C++ where the kernel supports the tensors: the bits are the same.

Letters used for shapes in this file:
    V  rows of the table          k  entries of a sparse gradient
    *  the shape of one row       n  rows that a step uses

The optimizers call `sgd_`, `adagrad_` and `adamw_`; the functions of the same names in reference.py define what they
compute and document their arguments. Only the sign of a NaN may differ.

The kernel is not compiled at import, but by the first step that can use it, or by `backend()`. It uses one thread: a
step is limited by cache misses, and on a busy machine, threads that wait for each other cost more than the whole step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from ctypes import CDLL, c_double, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import torch
from torch import Tensor

from frostline.errors import MissingExtraError
from frostline.optim import compiler, reference

if TYPE_CHECKING:
    from typing_extensions import Unpack

_NAMES = {torch.float32: "float32", torch.float64: "float64"}
_LIMIT = 2**31  # rows or entries: the kernel sorts keys of 64 bits, half of them the id, half the index of the entry
_POINTER, _INT64, _DOUBLE, _INT = c_void_p, c_int64, c_double, c_int
_BATCH = [_INT64, _INT64, *[_POINTER] * 5]  # n, D, values, repeated, index, rows, param
_SIGNATURES = {
    "group_by_row": [_POINTER, *[_INT64] * 3, *[_POINTER] * 4],
    "sgd": [*_BATCH, *[_POINTER] * 2, *[_DOUBLE] * 3, _INT, _DOUBLE, _INT],
    "adagrad": [*_BATCH, _POINTER, _INT, _POINTER, _INT64, *[_DOUBLE] * 2, _INT],
    "adamw": [*_BATCH, *[_POINTER] * 4, *[_INT64, _POINTER] * 2, _INT64, *[_DOUBLE] * 5, _INT],
}


class Backend(NamedTuple):
    """What the row optimizers compute with.

    Attributes:
        name: "c++" or "torch".
        why: The reason, in a sentence.
    """

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


def backend() -> Backend:
    """Return what computes the steps of row optimizers: the C++ kernel or plain torch. Both give the same bits.

    The kernel is for float32 and float64 tables on the CPU; all others use plain torch, whatever this returns. To
    choose, set the environment variable `FROSTLINE_BACKEND` to `torch` or `c++`.

    Returns:
        A pair (name, why); name is "c++" or "torch".

    Raises:
        MissingExtraError: FROSTLINE_BACKEND is c++, but the kernel cannot be compiled here.
        FrostlineError: FROSTLINE_BACKEND has another value.

    Cost: the first call on a machine compiles the kernel, about a second.

    Example:
        >>> backend().name in ("c++", "torch")
        True
    """
    library, why = compiler.chosen(_load_once)
    return Backend("torch" if library is None else "c++", why)


@cache
def _load_once() -> tuple[CDLL | None, str]:
    try:
        library, why = compiler.load()
    except compiler.BuildError as error:
        return None, str(error)
    library.frostline_count_uses.argtypes = [_INT64, *[_POINTER] * 3]
    library.frostline_count_uses.restype = _INT64
    for name, arguments in _SIGNATURES.items():
        for dtype in _NAMES.values():
            function = getattr(library, f"frostline_{name}_{dtype}")
            function.argtypes, function.restype = arguments, _INT64 if name == "group_by_row" else None
    return library, why


@dataclass(frozen=True)
class RowGradient:
    """The summed gradient of the rows in use, for the kernel: the entry of a row that is named once is not copied.

    Attributes:
        values: All entries, shape (k, *).
        repeated: Sums of the entries of rows that are named more than once, shape (k // 2, *), the rest unused.
        index: Where the gradient of each row is, shape (n,): i >= 0 for `values[i]`, i < 0 for `repeated[-1 - i]`.
    """

    values: Tensor
    repeated: Tensor
    index: Tensor

    def to_tensor(self) -> Tensor:
        """Return a copy as one tensor, shape (n, *)."""
        single = self.index >= 0
        result = self.values.index_select(0, self.index.clamp(min=0)).add_(0.0)  # -0 becomes 0, as in a sum
        result[~single] = self.repeated[-1 - self.index[~single]]
        return result


def group_by_row(ids: Tensor, values: Tensor, size: int) -> tuple[Tensor, RowGradient] | None:
    """Sum the entries of a sparse gradient by row, and drop rows whose sum is all zeros.

    The entries of a row are added in their order, starting from 0, as `index_add_` does.

    Args:
        ids: Row of each entry, int64, shape (k,).
        values: Shape (k, *).
        size: Rows of the table, V.

    Returns:
        The rows, int64, sorted, shape (n,), and their gradient. None if the kernel does not support the tensors, or if
        an id is not in 0, ..., V - 1.

    Cost: one sort of ids, and one pass over the entries of rows that are named more than once.
    """
    if max(size, len(ids)) >= _LIMIT or not _is_supported(values, ids):
        return None
    values = values.resolve_neg().contiguous()
    rows, index = torch.empty_like(ids), torch.empty_like(ids)
    repeated = values.new_empty(len(ids) // 2, *values.shape[1:])
    call = _function("group_by_row", values)
    n = call(_pointer(ids), len(ids), size, _row_size(values), *(_pointer(x) for x in (values, rows, index, repeated)))
    return None if n < 0 else (rows[:n], RowGradient(values, repeated, index[:n]))


class _SGD(TypedDict):
    lr: float
    momentum: float
    dampening: float
    nesterov: bool
    weight_decay: float
    maximize: bool


def sgd_(
    param: Tensor,
    rows: Tensor | None,
    grad: Tensor | RowGradient,
    momentum_buffer: Tensor | None,
    used: Tensor | None,
    **options: Unpack[_SGD],
) -> None:
    """Do the same as `frostline.optim.reference.sgd_`."""
    if not _is_supported(_values(grad), rows, param, momentum_buffer, used):
        return reference.sgd_(param, rows, _as_tensor(grad), momentum_buffer, used, **options)
    _bind("sgd", rows, grad, param, momentum_buffer, used)(
        options["lr"],
        options["momentum"],
        1 - options["dampening"],
        options["nesterov"],
        options["weight_decay"],
        options["maximize"],
    )


class _Adagrad(TypedDict):
    lr: float
    lr_decay: float
    eps: float
    weight_decay: float
    maximize: bool


def adagrad_(
    param: Tensor,
    rows: Tensor | None,
    grad: Tensor | RowGradient,
    state_sum: Tensor,
    step: Tensor | None,
    **options: Unpack[_Adagrad],
) -> None:
    """Do the same as `frostline.optim.reference.adagrad_`."""
    if not _is_supported(_values(grad), rows, param, state_sum, step):
        return reference.adagrad_(param, rows, _as_tensor(grad), state_sum, step, **options)
    if step is None:
        rates = torch.tensor([options["lr"]], dtype=torch.float64)
    else:
        rates = reference.decayed_rates(_count_uses(step, rows)[0].double(), options["lr"], options["lr_decay"])
    _bind("adagrad", rows, grad, param, state_sum)(
        state_sum.dim() < param.dim(),
        _pointer(rates),
        step is not None and step.dim(),
        options["eps"],
        options["weight_decay"],
        options["maximize"],
    )


class _AdamW(TypedDict):
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    maximize: bool


def adamw_(
    param: Tensor,
    rows: Tensor | None,
    grad: Tensor | RowGradient,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    step: Tensor,
    **options: Unpack[_AdamW],
) -> None:
    """Do the same as `frostline.optim.reference.adamw_`."""
    if not _is_supported(_values(grad), rows, param, exp_avg, exp_avg_sq, max_exp_avg_sq, step):
        return reference.adamw_(param, rows, _as_tensor(grad), exp_avg, exp_avg_sq, max_exp_avg_sq, step, **options)
    lr, beta1, beta2 = options["lr"], options["beta1"], options["beta2"]
    t, largest = _count_uses(step, rows)
    tables = [reference.one_minus_powers(beta, largest) for beta in (beta1, beta2)]
    _bind("adamw", rows, grad, param, exp_avg, exp_avg_sq, max_exp_avg_sq)(
        _pointer(t),
        t.dim(),
        *(x for table in tables for x in (_pointer(table), len(table))),
        lr,
        beta1,
        beta2,
        options["eps"],
        1 - lr * options["weight_decay"],
        options["maximize"],
    )


def _count_uses(step: Tensor, rows: Tensor | None) -> tuple[Tensor, int]:
    """Count one more use of `rows`, as `count_uses` of reference.py; return the new counts, int32, and the largest."""
    library, _ = compiler.one_at_a_time(_load_once)
    if rows is None or step.dim() == 0 or library is None:
        reference.count_uses(step, rows)
        return step, int(step.max())
    t = torch.empty(len(rows), dtype=torch.int32)
    largest: int = library.frostline_count_uses(len(rows), _pointer(rows), _pointer(step), _pointer(t))
    torch.autograd.graph.increment_version(step)
    return t, largest


def _bind(
    name: str, rows: Tensor | None, grad: Tensor | RowGradient, param: Tensor, *state: Tensor | None
) -> Callable[..., None]:
    """Return the kernel's function with its tensors bound; it takes the options."""
    for tensor in (param, *state):
        if tensor is not None:
            torch.autograd.graph.increment_version(tensor)  # autograd does not see what the kernel writes
    if isinstance(grad, RowGradient):
        n, values, repeated, index = len(grad.index), grad.values, grad.repeated, grad.index
        tensors: list[Tensor | None] = [values, repeated, index]
    else:
        n, values = len(grad), grad.resolve_neg().contiguous()
        tensors = [values, None, None]
    function = _function(name, values)
    pointers = [_pointer(tensor) for tensor in (*tensors, rows, param, *state)]

    def run(*options: float | None) -> None:
        function(n, _row_size(values), *pointers, *options)  # `values` is held here: it may be a temporary copy

    return run


def _values(grad: Tensor | RowGradient) -> Tensor:
    return grad.values if isinstance(grad, RowGradient) else grad


def _as_tensor(grad: Tensor | RowGradient) -> Tensor:
    return grad.to_tensor() if isinstance(grad, RowGradient) else grad


def _is_supported(like: Tensor, *others: Tensor | None) -> bool:
    """Return whether the kernel is in use and can read and write these tensors."""
    if like.dtype not in _NAMES or not _is_plain_cpu_tensor(like):
        return False
    for tensor in others:
        if tensor is not None:
            same_dtype = not tensor.is_floating_point() or tensor.dtype == like.dtype
            if not (same_dtype and _is_plain_cpu_tensor(tensor) and tensor.is_contiguous()):
                return False
    return backend().name == "c++"  # last: this may compile


def _is_plain_cpu_tensor(tensor: Tensor) -> bool:
    plain = type(tensor) in (Tensor, torch.nn.Parameter)  # a subclass may keep its values elsewhere
    return plain and tensor.device.type == "cpu" and tensor.layout is torch.strided


def _function(name: str, like: Tensor) -> Callable[..., int]:
    library, why = compiler.one_at_a_time(_load_once)
    if library is None:
        raise MissingExtraError(f"the kernel: {why}. Install a C++ compiler (apt install g++).")
    function: Callable[..., int] = getattr(library, f"frostline_{name}_{_NAMES[like.dtype]}")
    return function


def _row_size(x: Tensor) -> int:
    return math.prod(x.shape[1:])


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
