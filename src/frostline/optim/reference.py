"""The arithmetic of the row optimizers in plain torch, on chosen rows of a table, in place: the truth.

Letters used for shapes in this file:
    V  rows of the table          n  rows that a step uses (n <= V)
    *  the shape of one row (nothing for a vector of V numbers)

    param  (V, *)   any floating dtype; other state (V, *) in the dtype of `grad`
    rows   (n,)     int64, sorted, each once; or None: every row, n = V, without a copy of the table
    grad   (n, *)   the gradient of each of these rows, duplicates summed; its dtype is the one computed in:
                    that of `param`, float32 for float16 and bfloat16
    step   (V,)     int32, how often each row was used; or (): one count for all rows

Each function is a short sequence of element-wise operations, each rounded once, in the order written, none contracted
into a multiply-add: no `alpha=`, no `addcmul`, no `lerp`. Whoever follows the order gets the same bits. Python numbers
(`1 - lr * weight_decay`) are doubles, rounded to the dtype of `grad` where they meet a tensor; so are the two numbers a
row of `adagrad_` and `adamw_`, which `decayed_rates` and `bias_corrections` compute in float64. Values of another dtype
than `grad` are widened when read and rounded once when written. `grad` is never written to. Nothing of size V is
allocated unless `rows` is None. A row that is not in `rows` keeps every bit. Rows of a sparse gradient whose sum is all
zeros never get here: `used_rows` (used.py) leaves them out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec, cast

import numpy as np
import torch
from torch import Tensor

_P = ParamSpec("_P")
_BLOCK = 1 << 19  # bytes of gradient taken at a time: what is computed from them stays in the processor's cache


def _in_blocks(update: Callable[_P, None]) -> Callable[_P, None]:
    """Run an update a block of rows at a time, which leaves the same bits: rows know nothing of each other."""

    @wraps(update)
    def run(*args: _P.args, **options: _P.kwargs) -> None:
        param, rows, grad, *state = cast(Any, args)
        counts_together = any(tensor is not None and tensor.dim() == 0 for tensor in state)
        size = max(1, _BLOCK * len(grad) // max(1, grad.numel() * grad.element_size()))
        if rows is None or counts_together or len(rows) <= size or grad.device.type != "cpu":
            return update(*args, **options)
        for block, its_grad in zip(rows.split(size), grad.split(size), strict=True):
            cast(Any, update)(param, block, its_grad, *state, **options)

    return run


@_in_blocks
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
    """One step of SGD on `rows`: L2 decay, momentum that changes only with its row, Nesterov.

    Args:
        param: Table, shape (V, *), changed in place.
        rows: Rows to change, shape (n,), or None for all.
        grad: Their gradient, shape (n, *).
        momentum_buffer: Shape (V, *), zero at first, changed in place; None without momentum.
        used: Bool, shape (V,), False at first, changed in place: a row used for the first time takes its gradient as
            momentum, undampened. None when `dampening` is 0, where a buffer of zeros comes to the same.
        lr: Learning rate.
        momentum: Factor of the momentum that is kept.
        dampening: The gradient enters the momentum times `1 - dampening`.
        nesterov: Step along the gradient plus `momentum` times the new momentum.
        weight_decay: Times the row itself, added to its gradient.
        maximize: Step along the gradient, not against it.
    """
    value = _take(param, rows, grad)
    grad = _directed(grad, value, weight_decay, maximize)
    if momentum_buffer is not None:
        buffer = _take(momentum_buffer, rows, grad)
        first = None if used is None else ~_take(used, rows)  # (n,)
        buffer.mul_(momentum).add_(grad.mul(1 - dampening))
        if first is not None and used is not None:
            buffer = torch.where(_column(first, grad), grad, buffer)
            _put(used, rows, torch.ones_like(first))
        _put(momentum_buffer, rows, buffer)
        grad = grad.add(buffer.mul(momentum)) if nesterov else buffer
    value.sub_(grad.mul(lr))
    _put(param, rows, value)


@_in_blocks
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
    """One step of Adagrad on `rows`, with a sum of squares for each number or one for each row.

    Args:
        param: Table, shape (V, *), changed in place.
        rows: Rows to change, shape (n,), or None for all.
        grad: Their gradient, shape (n, *).
        state_sum: Sum of squared gradients, shape (V, *), changed in place; or of their mean over a row, shape (V,)
            for rows that have a shape. That mean is `folded_sum` divided by the numbers in a row.
        step: int32 counts, changed in place; None when `lr_decay` is 0, where nothing reads them.
        lr: Learning rate.
        lr_decay: In use t, counted from 1, the rate is `lr / (1 + (t - 1) * lr_decay)`.
        eps: Added to the root of the sum.
        weight_decay: Times the row itself, added to its gradient.
        maximize: Step along the gradient, not against it.
    """
    value = _take(param, rows, grad)
    grad = _directed(grad, value, weight_decay, maximize)
    total = _take(state_sum, rows, grad)
    square = grad.mul(grad)
    total.add_(square if total.dim() == grad.dim() else folded_sum(square).div_(grad[0].numel() if len(grad) else 1))
    _put(state_sum, rows, total)
    divisor = _column(root(total).add_(eps), grad)
    rate = lr if step is None else _column(decayed_rates(counted(step, rows), lr, lr_decay).to(grad.dtype), grad)
    value.sub_(grad.mul(rate).div_(divisor))
    _put(param, rows, value)


@_in_blocks
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
    """One step of AdamW on `rows`, decay on these rows only, AMSGrad if `max_exp_avg_sq` is given.

    Args:
        param: Table, shape (V, *), changed in place.
        rows: Rows to change, shape (n,), or None for all.
        grad: Their gradient, shape (n, *).
        exp_avg: Running mean of the gradient, shape (V, *), changed in place.
        exp_avg_sq: Running mean of its square, shape (V, *), changed in place.
        max_exp_avg_sq: Largest `exp_avg_sq` so far, shape (V, *), changed in place, or None.
        step: int32 counts, shape (V,) or (), changed in place.
        lr: Learning rate.
        beta1: Share of `exp_avg` that is kept.
        beta2: Share of `exp_avg_sq` that is kept.
        eps: Added to the root.
        weight_decay: The rows are first multiplied by `1 - lr * weight_decay`.
        maximize: Step along the gradient, not against it.
    """
    value = _take(param, rows, grad)
    if weight_decay != 0:
        value.mul_(1 - lr * weight_decay)
    if maximize:
        grad = grad.neg()
    mean = _take(exp_avg, rows, grad)
    scratch = grad.sub(mean)  # one for all: fresh memory costs more than what is done in it
    if 1 - beta1 < 0.5:  # torch's lerp: which end it starts from decides what an infinity does
        mean.add_(scratch.mul_(1 - beta1))
    else:
        torch.sub(grad, scratch.mul_(beta1), out=mean)
    _put(exp_avg, rows, mean)
    square = _take(exp_avg_sq, rows, grad)
    square.mul_(beta2).add_(torch.mul(grad, 1 - beta2, out=scratch).mul_(grad))
    _put(exp_avg_sq, rows, square)
    if max_exp_avg_sq is not None:
        square = torch.maximum(_take(max_exp_avg_sq, rows, grad), square)
        _put(max_exp_avg_sq, rows, square)
    corrections = bias_corrections(counted(step, rows), lr, beta1, beta2)
    step_size, correction = (_column(x.to(grad.dtype), grad) for x in corrections)
    value.sub_(torch.mul(mean, step_size, out=scratch).div_(root(square).div_(correction).add_(eps)))
    _put(param, rows, value)


def counted(step: Tensor, rows: Tensor | None) -> Tensor:
    """Count one more use of `rows` in `step`; return the new counts, float64, (n,), or () if one is for all rows."""
    if rows is None or step.dim() == 0:
        return step.add_(1).double()
    count = step.index_select(0, rows).add_(1)
    step.index_copy_(0, rows, count)
    return count.double()


def decayed_rates(t: Tensor, lr: float, lr_decay: float) -> Tensor:
    """Return Adagrad's rate in use `t`, float64."""
    return lr / (1 + (t - 1) * lr_decay)


def bias_corrections(t: Tensor, lr: float, beta1: float, beta2: float) -> tuple[Tensor, Tensor]:
    """Return `lr / (1 - beta1^t)` and `sqrt(1 - beta2^t)`, float64."""
    return lr / _short_of_one(beta1, t), root(_short_of_one(beta2, t))


def _short_of_one(beta: float, t: Tensor) -> Tensor:
    """Return `1 - beta^t`. On the CPU looked up: torch's power depends on the place of a number in its tensor."""
    if t.device.type != "cpu":
        return 1 - beta**t
    table = one_minus_powers(beta, int(t.max()) if t.numel() else 0)
    return table.take(t.clamp(max=len(table) - 1).long())


def one_minus_powers(beta: float, most: int) -> Tensor:
    """Return `1 - beta^t` for t = 0, 1, ..., at least `most` or up to where all further ones are the same, float64."""
    end = math.ceil(-38 / math.log(beta)) if 0 < beta < 1 else 1  # e^-38 < 2^-54: the difference is 1
    return _powers(beta, min(1 << most.bit_length(), end + 1))


@lru_cache(maxsize=8)
def _powers(beta: float, count: int) -> Tensor:
    return torch.tensor([1 - beta**t for t in range(count)], dtype=torch.float64, device="cpu")


def root(x: Tensor) -> Tensor:
    """Return the square root, rounded right. torch's own, where it is MKL's, misses the last bit of some numbers."""
    if x.device.type != "cpu":
        return x.sqrt()
    result = torch.empty_like(x)
    with np.errstate(invalid="ignore"):
        np.sqrt(x.numpy(), out=result.numpy())
    return result


def folded_sum(x: Tensor) -> Tensor:
    """Sum each row of (n, *) into (n,): fold the second half onto the first until one number is left.

    With w numbers left, numbers `h, ..., w - 1` are added to numbers `0, ..., w - h - 1`, where h = (w + 1) // 2.
    """
    x = x.reshape(len(x), -1) if len(x) else x.new_zeros(0, 1)
    while (width := x.shape[1]) > 1:
        half = (width + 1) // 2
        x = torch.cat([x[:, : width - half] + x[:, half:], x[:, width - half : half]], dim=1)
    return x.reshape(-1)


def _directed(grad: Tensor, value: Tensor, weight_decay: float, maximize: bool) -> Tensor:
    """Return the gradient to step against: the sign first, then L2 decay."""
    if maximize:
        grad = grad.neg()
    return value.mul(weight_decay).add_(grad) if weight_decay != 0 else grad


def _take(table: Tensor, rows: Tensor | None, like: Tensor | None = None) -> Tensor:
    """Return the rows, in the dtype of `like`; without `rows` and in that dtype already, the table itself."""
    taken = table if rows is None else table.index_select(0, rows)
    return taken if like is None else taken.to(like.dtype)


def _put(table: Tensor, rows: Tensor | None, values: Tensor) -> None:
    if rows is not None:
        values = values.to(table.dtype)
        wide, wide_values = _in_chunks(table), _in_chunks(values)
        if wide.dtype == wide_values.dtype:
            table, values = wide, wide_values
        table.index_copy_(0, rows, values)
    elif values is not table:
        table.copy_(values)


def _in_chunks(x: Tensor) -> Tensor:
    """View rows as numbers of 16 bytes where that is possible: torch copies rows number by number."""
    size = 16 // x.element_size()
    if x.dim() < 2 or x.shape[-1] % size or x.storage_offset() % size or not x.is_contiguous():
        return x
    return x.view(torch.complex128)


def _column(x: Tensor, like: Tensor) -> Tensor:
    """Give one number a row, shape (n,), the trailing dimensions that broadcast to `like`, (n, *)."""
    return x.view(-1, *[1] * (like.dim() - 1)) if x.dim() < like.dim() else x
