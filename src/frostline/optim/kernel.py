"""The functions of rows.py in C++, for tables on the CPU: which of the two is in use, and the calls.

Letters used for shapes in this file:
    V  rows of the table          n  ids of a step
    *  the shape of one row       u  different ids among them (u <= n)

`sgd_`, `adagrad_` and `adamw_` take what their namesakes in rows.py take, and leave the same bits; NaNs may differ in
their sign. `rows` may repeat and come in any order here: gradients of the same row are added up in the order in which
they stand, starting from 0, which is what `unique` and `index_add_` do.

Nothing is compiled by an import, but by the first step that could use the kernel, or by `backend()`. One thread: a step
is bound by misses of the memory, and a team of threads that wait for each other on a busy machine costs more than the
whole step.
"""

from __future__ import annotations

import os
import threading
from ctypes import CDLL, c_double, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from frostline.errors import FrostlineError, MissingExtraError, RowError
from frostline.optim import compiler, rows as plain

_LOCK = threading.Lock()
_NAMES = {torch.float32: "float32", torch.float64: "float64"}
_TOO_MANY = 2**31  # rows or ids: the kernel sorts 32-bit halves
_POINTER, _COUNT, _NUMBER, _FLAG = c_void_p, c_int64, c_double, c_int
_BATCH = [_COUNT, _COUNT, *[_POINTER] * 4]  # u, D, rows, starts, order, values
_SIGNATURES = {
    "sgd": [*_BATCH, *[_POINTER] * 3, *[_NUMBER] * 3, _FLAG, _NUMBER, _FLAG],
    "adagrad": [*_BATCH, *[_POINTER] * 2, _FLAG, _POINTER, _COUNT, *[_NUMBER] * 2, _FLAG],
    "adamw": [*_BATCH, *[_POINTER] * 6, _COUNT, *[_NUMBER] * 4, *[_FLAG] * 2],
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
    """Say what computes the steps of row optimizers: the C++ kernel, or plain torch. Both leave the same bits.

    The kernel serves float32 and float64 tables in the memory of the CPU; all others are served by plain torch,
    whatever this says. `FROSTLINE_BACKEND=torch` or `FROSTLINE_BACKEND=c++` in the environment forces one.

    Returns:
        A pair (name, why); name is "c++" or "torch".

    Raises:
        MissingExtraError: FROSTLINE_BACKEND is c++, and the kernel cannot be built here.
        FrostlineError: FROSTLINE_BACKEND is something else.

    Cost: the first call on a machine compiles the kernel, about a second.

    Example:
        >>> backend().name in ("c++", "torch")
        True
    """
    return _chosen(os.environ.get("FROSTLINE_BACKEND", ""))


def _chosen(wanted: str) -> Backend:
    if wanted == "torch":
        return Backend("torch", "FROSTLINE_BACKEND asks for it")
    if wanted not in ("", "c++"):
        raise FrostlineError(f"FROSTLINE_BACKEND: {wanted!r} is no backend. Set it to torch or c++, or unset it.")
    library, why = _library()
    if library is None and wanted:
        raise MissingExtraError(
            f"FROSTLINE_BACKEND: c++ cannot be used here: {why}. Install a C++ compiler (apt install g++), or unset it."
        )
    return Backend("torch" if library is None else "c++", why)


def _library() -> tuple[CDLL | None, str]:
    with _LOCK:
        return _load_once()


@cache
def _load_once() -> tuple[CDLL | None, str]:
    try:
        library, why = compiler.load()
    except compiler.CannotBuild as error:
        return None, str(error)
    library.frostline_group.argtypes = [_POINTER, _COUNT, _COUNT, *[_POINTER] * 3]
    library.frostline_group.restype = _COUNT
    for name, arguments in _SIGNATURES.items():
        for dtype in _NAMES.values():
            function = getattr(library, f"frostline_{name}_{dtype}")
            function.argtypes, function.restype = arguments, None
    return library, why


def takes(param: Tensor, grad: Tensor, *state: Tensor | None) -> bool:
    """Whether the kernel is in use and serves these: on the CPU, contiguous, float32 or float64 alike.

    Args:
        param: Table, shape (V, *).
        grad: Shape (n, *).
        state: Whatever else the function gets, or None.
    """
    if param.dtype not in _NAMES or grad.dtype != param.dtype or param.dim() == 0:
        return False
    if len(param) >= _TOO_MANY or len(grad) >= _TOO_MANY:
        return False
    for tensor in (param, *state):
        if tensor is not None and not (_in_memory(tensor) and tensor.is_contiguous()):
            return False
    return _in_memory(grad) and backend().name == "c++"


def _in_memory(tensor: Tensor) -> bool:
    plain_class = type(tensor) is Tensor or type(tensor) is torch.nn.Parameter
    return plain_class and tensor.device.type == "cpu" and tensor.layout is torch.strided


@dataclass
class _Batch:
    """The rows of a step, grouped: what every function of the kernel gets first.

    Attributes:
        rows: Shape (u,), sorted, or None for all rows.
        starts: Shape (u + 1,) in memory of (n + 1,), or None.
        order: Shape (n,), or None.
        values: Shape (n, *).
    """

    rows: Tensor | None
    starts: Tensor | None
    order: Tensor | None
    values: Tensor

    def arguments(self) -> tuple[int | None, ...]:
        """u, D, rows, starts, order, values."""
        values = self.values
        u = len(values) if self.rows is None else len(self.rows)
        width = values[0].numel() if len(values) else 1
        return u, width, _at(self.rows), _at(self.starts), _at(self.order), _at(values)


def _grouped(param: Tensor, rows: Tensor | None, values: Tensor) -> _Batch:
    library, why = _library()
    assert library is not None, why
    values = values.resolve_neg().contiguous()
    if rows is None:
        return _Batch(None, None, None, values)
    rows = rows.contiguous()
    found, starts, order = torch.empty(3, len(rows) + 1, dtype=torch.int64).unbind()
    u = library.frostline_group(_at(rows), len(rows), len(param), _at(found), _at(starts), _at(order))
    if u < 0:
        outside = rows[(rows < 0) | (rows >= len(param))]
        raise RowError(
            f"gradient: {len(outside)} of {len(rows)} ids are outside the table, the first is {outside[0]}. "
            f"The table has {len(param)} rows, so ids run from 0 to {len(param) - 1}."
        )
    return _Batch(found[:u], starts, order, values)


def sgd_(
    param: Tensor,
    rows: Tensor | None,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    used: Tensor | None,
    *,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    maximize: bool,
) -> None:
    """Do what `rows.sgd_` does; `rows` (n,) may repeat."""
    batch = _grouped(param, rows, grad)
    _call("sgd", param, batch, momentum_buffer, used, lr, momentum, 1 - dampening, nesterov, weight_decay, maximize)


def adagrad_(
    param: Tensor,
    rows: Tensor | None,
    grad: Tensor,
    state_sum: Tensor,
    step: Tensor | None,
    *,
    lr: float,
    lr_decay: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
) -> None:
    """Do what `rows.adagrad_` does; `rows` (n,) may repeat."""
    batch = _grouped(param, rows, grad)
    rates = torch.tensor([lr], dtype=torch.float64)
    if step is not None:
        rates = plain.decayed_rates(step, batch.rows, lr, lr_decay)
    one_a_row = state_sum.dim() < param.dim()
    _call("adagrad", param, batch, state_sum, one_a_row, rates, len(rates) > 1, eps, weight_decay, maximize)


def adamw_(
    param: Tensor,
    rows: Tensor | None,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    step: Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
) -> None:
    """Do what `rows.adamw_` does; `rows` (n,) may repeat."""
    batch = _grouped(param, rows, grad)
    sizes, roots = plain.bias_corrections(step, batch.rows, lr, beta1, beta2)
    kept = 1 - lr * weight_decay
    _call(
        "adamw",
        param,
        batch,
        exp_avg,
        exp_avg_sq,
        max_exp_avg_sq,
        sizes,
        roots,
        len(sizes) > 1,
        beta1,
        beta2,
        eps,
        kept,
        weight_decay != 0,
        maximize,
    )


def _call(name: str, param: Tensor, batch: _Batch, *arguments: Tensor | float | bool | None) -> None:
    """Call a function of the kernel: tensors become addresses, those of state are marked as changed for autograd."""
    library, why = _library()
    assert library is not None, why
    values = (_at(x) if isinstance(x, Tensor) else x for x in arguments)
    getattr(library, f"frostline_{name}_{_NAMES[param.dtype]}")(*batch.arguments(), param.data_ptr(), *values)
    for tensor in (param, *arguments):
        if isinstance(tensor, Tensor):
            torch.autograd.graph.increment_version(tensor)


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
