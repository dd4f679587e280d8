"""The functions of rows.py in C++ where the kernel serves, else those of rows.py: the bits are the same.

Letters used for shapes in this file:
    V  rows of the table          k  entries of a sparse gradient
    *  the shape of one row       n  rows that a step uses

`sgd_`, `adagrad_` and `adamw_` are what the optimizers call; their namesakes in rows.py say what they compute and what
they take. Only the sign of a NaN may differ.

Nothing is compiled by an import, but by the first step that could use the kernel, or by `backend()`. One thread: a step
is bound by misses of the memory, and a team of threads that wait for each other on a busy machine costs more than the
whole step.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from ctypes import CDLL, c_double, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import torch
from torch import Tensor

from frostline.errors import FrostlineError, MissingExtraError
from frostline.optim import compiler
from frostline.optim import reference as plain

if TYPE_CHECKING:
    from typing_extensions import Unpack

_LOCK = threading.Lock()
_NAMES = {torch.float32: "float32", torch.float64: "float64"}
_TOO_MANY = 2**31  # rows or entries: the kernel sorts by halves of 64 bits
_POINTER, _COUNT, _NUMBER, _FLAG = c_void_p, c_int64, c_double, c_int
_BATCH = [_COUNT, _COUNT, *[_POINTER] * 5]  # n, D, values, repeated, place, rows, param
_SIGNATURES = {
    "gathered": [_POINTER, *[_COUNT] * 3, *[_POINTER] * 4],
    "sgd": [*_BATCH, *[_POINTER] * 2, *[_NUMBER] * 3, _FLAG, _NUMBER, _FLAG],
    "adagrad": [*_BATCH, _POINTER, _FLAG, _POINTER, _COUNT, *[_NUMBER] * 2, _FLAG],
    "adamw": [*_BATCH, *[_POINTER] * 4, *[_COUNT, _POINTER] * 2, _COUNT, *[_NUMBER] * 5, _FLAG],
}


class Backend(NamedTuple):
    """What the row optimizers compute with.

    Attributes:
        name: "c++" or "torch".
        why: How that came about, in a sentence.
    """

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


def backend() -> Backend:
    """Say what computes the steps of row optimizers: the C++ kernel or plain torch. Both leave the same bits.

    The kernel serves float32 and float64 tables in the memory of the CPU; plain torch serves all others, whatever this
    says. `FROSTLINE_BACKEND=torch` or `FROSTLINE_BACKEND=c++` in the environment asks for one.

    Returns:
        A pair (name, why); name is "c++" or "torch".

    Raises:
        MissingExtraError: FROSTLINE_BACKEND is c++, and the kernel cannot be had here.
        FrostlineError: FROSTLINE_BACKEND is something else.

    Cost: the first call on a machine compiles the kernel, about a second.

    Example:
        >>> backend().name in ("c++", "torch")
        True
    """
    wanted = os.environ.get("FROSTLINE_BACKEND", "")
    if wanted == "torch":
        return Backend("torch", "FROSTLINE_BACKEND asks for it")
    if wanted not in ("", "c++"):
        raise FrostlineError(f"FROSTLINE_BACKEND: {wanted!r} is no backend. Set it to torch or c++, or unset it.")
    library, why = _library()
    if library is None and wanted:
        fix = "Install a C++ compiler (apt install g++), or unset it."
        raise MissingExtraError(f"FROSTLINE_BACKEND: c++ cannot be used here: {why}. {fix}")
    return Backend("torch" if library is None else "c++", why)


def _library() -> tuple[CDLL | None, str]:
    with _LOCK:  # of several threads, one compiles
        return _load_once()


@cache
def _load_once() -> tuple[CDLL | None, str]:
    try:
        library, why = compiler.load()
    except compiler.CannotBuild as error:
        return None, str(error)
    library.frostline_count.argtypes = [_COUNT, *[_POINTER] * 3]
    library.frostline_count.restype = _COUNT
    for name, arguments in _SIGNATURES.items():
        for dtype in _NAMES.values():
            function = getattr(library, f"frostline_{name}_{dtype}")
            function.argtypes, function.restype = arguments, _COUNT if name == "gathered" else None
    return library, why


@dataclass(frozen=True)
class Gathered:
    """The summed gradient of the rows in use, for the kernel: entries of rows that are named once are not copied.

    Attributes:
        values: All entries, shape (k, *).
        repeated: Sums of the entries of rows that are named more than once, shape (k // 2, *), the rest unused.
        place: Where the gradient of each row is, shape (n,): in `values`, or below 0, from -1 on, in `repeated`.
    """

    values: Tensor
    repeated: Tensor
    place: Tensor

    def tensor(self) -> Tensor:
        """Copy it into one tensor, shape (n, *)."""
        once = self.place >= 0
        result = self.values.index_select(0, self.place.clamp(min=0)).add_(0.0)  # -0 becomes 0, as in a sum
        result[~once] = self.repeated[-1 - self.place[~once]]
        return result


def gathered(ids: Tensor, values: Tensor, size: int) -> tuple[Tensor, Gathered] | None:
    """Group the entries of a sparse gradient by row, and leave out rows whose sum is all zeros.

    Entries of one row are added in the order in which they stand, starting from 0, as `index_add_` does.

    Args:
        ids: Row of each entry, int64, shape (k,).
        values: Shape (k, *).
        size: Rows of the table, V.

    Returns:
        Rows, int64, sorted, shape (n,), and their gradient; None where the kernel does not serve, or where an id is
        not in 0, ..., V - 1.

    Cost: one sort of ids, and one pass over the entries of rows that are named more than once.
    """
    if max(size, len(ids)) >= _TOO_MANY or not _serves(values, ids):
        return None
    values = values.resolve_neg().contiguous()
    rows, place = torch.empty_like(ids), torch.empty_like(ids)
    repeated = values.new_empty(len(ids) // 2, *values.shape[1:])
    call = _function("gathered", values)
    n = call(_at(ids), len(ids), size, _width(values), *(_at(x) for x in (values, rows, place, repeated)))
    return None if n < 0 else (rows[:n], Gathered(values, repeated, place[:n]))


def summed(ids: Tensor, values: Tensor, size: int) -> tuple[Tensor, Tensor] | None:
    """Do what `gathered` does, and copy the gradient into one tensor, (n, *)."""
    done = gathered(ids, values, size)
    return None if done is None else (done[0], done[1].tensor())


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
    grad: Tensor | Gathered,
    momentum_buffer: Tensor | None,
    used: Tensor | None,
    **options: Unpack[_SGD],
) -> None:
    """Do what `frostline.optim.reference.sgd_` does."""
    if not _serves(_values(grad), rows, param, momentum_buffer, used):
        return plain.sgd_(param, rows, _tensor(grad), momentum_buffer, used, **options)
    _step("sgd", rows, grad, param, momentum_buffer, used)(
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
    grad: Tensor | Gathered,
    state_sum: Tensor,
    step: Tensor | None,
    **options: Unpack[_Adagrad],
) -> None:
    """Do what `frostline.optim.reference.adagrad_` does."""
    if not _serves(_values(grad), rows, param, state_sum, step):
        return plain.adagrad_(param, rows, _tensor(grad), state_sum, step, **options)
    if step is None:
        rates = torch.tensor([options["lr"]], dtype=torch.float64)
    else:
        rates = plain.decayed_rates(_counted(step, rows)[0].double(), options["lr"], options["lr_decay"])
    _step("adagrad", rows, grad, param, state_sum)(
        state_sum.dim() < param.dim(),
        _at(rates),
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
    grad: Tensor | Gathered,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    step: Tensor,
    **options: Unpack[_AdamW],
) -> None:
    """Do what `frostline.optim.reference.adamw_` does."""
    if not _serves(_values(grad), rows, param, exp_avg, exp_avg_sq, max_exp_avg_sq, step):
        return plain.adamw_(param, rows, _tensor(grad), exp_avg, exp_avg_sq, max_exp_avg_sq, step, **options)
    lr, beta1, beta2 = options["lr"], options["beta1"], options["beta2"]
    t, most = _counted(step, rows)
    tables = [plain.one_minus_powers(beta, most) for beta in (beta1, beta2)]
    _step("adamw", rows, grad, param, exp_avg, exp_avg_sq, max_exp_avg_sq)(
        _at(t),
        t.dim(),
        *(x for table in tables for x in (_at(table), len(table))),
        lr,
        beta1,
        beta2,
        options["eps"],
        1 - lr * options["weight_decay"],
        options["maximize"],
    )


def _counted(step: Tensor, rows: Tensor | None) -> tuple[Tensor, int]:
    """Do what `counted` of rows.py does; return the new counts, int32, and the largest."""
    library, _ = _library()
    if rows is None or step.dim() == 0 or library is None:
        plain.counted(step, rows)
        return step, int(step.max())
    t = torch.empty(len(rows), dtype=torch.int32)
    most: int = library.frostline_count(len(rows), _at(rows), _at(step), _at(t))
    torch.autograd.graph.increment_version(step)
    return t, most


def _step(
    name: str, rows: Tensor | None, grad: Tensor | Gathered, param: Tensor, *state: Tensor | None
) -> Callable[..., None]:
    """The kernel's function, its tensors given; they count as changed in place."""
    for tensor in (param, *state):
        if tensor is not None:
            torch.autograd.graph.increment_version(tensor)
    if isinstance(grad, Gathered):
        n, values, repeated, place = len(grad.place), grad.values, grad.repeated, grad.place
        tensors = [values, repeated, place]
    else:
        n, values = len(grad), grad.resolve_neg().contiguous()
        tensors = [values]
    call = _function(name, values)
    at = [_at(tensor) for tensor in (*tensors, *[None] * (3 - len(tensors)), rows, param, *state)]

    def run(*options: float | None) -> None:
        call(n, _width(values), *at, *options)

    return run


def _values(grad: Tensor | Gathered) -> Tensor:
    return grad.values if isinstance(grad, Gathered) else grad


def _tensor(grad: Tensor | Gathered) -> Tensor:
    return grad.tensor() if isinstance(grad, Gathered) else grad


def _serves(like: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernel is in use and can read and write these."""
    if like.dtype not in _NAMES or not _in_memory(like):
        return False
    for tensor in others:
        if tensor is not None:
            fits = not tensor.is_floating_point() or tensor.dtype == like.dtype
            if not (fits and _in_memory(tensor) and tensor.is_contiguous()):
                return False
    return backend().name == "c++"


def _in_memory(tensor: Tensor) -> bool:
    ordinary = type(tensor) in (Tensor, torch.nn.Parameter)
    return ordinary and tensor.device.type == "cpu" and tensor.layout is torch.strided


def _function(name: str, like: Tensor) -> Callable[..., int]:
    library, why = _library()
    if library is None:
        raise MissingExtraError(f"the kernel: {why}. Install a C++ compiler (apt install g++).")
    function: Callable[..., int] = getattr(library, f"frostline_{name}_{_NAMES[like.dtype]}")
    return function


def _width(x: Tensor) -> int:
    return math.prod(x.shape[1:])


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
