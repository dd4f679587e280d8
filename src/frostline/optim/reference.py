"""The arithmetic of the row optimizers in plain torch, on chosen rows of a table, in place; the kernel's reference.

Letters used for shapes in this file:
    V  rows of the table          n  rows that a step uses (n <= V)
    *  the shape of one row (empty for a vector of V elements)

    param  (V, *)   any floating dtype; other state (V, *) in the dtype of `grad`
    rows   (n,)     int64, sorted, each once; or None: every row, n = V, without a copy of the table
    grad   (n, *)   the summed gradient of each of these rows; its dtype is the one to compute in: that of `param`,
                    float32 for float16 and bfloat16
    step   (V,)     int32, how often each row was used; or (): one count for all rows

Each function is a short sequence of element-wise operations, each rounded once, in the order written, none contracted
into a multiply-add: no `alpha=`, no `addcmul`, no `lerp`. An implementation that follows this order gets the same bits.
Python floats (`1 - lr * weight_decay`) are doubles, rounded to the dtype of `grad` when combined with a tensor; so are
the per-row factors of `adagrad_` and `adamw_`, which `decayed_rates` and `bias_corrections` compute in float64. Values
of another dtype than `grad` are widened when read and rounded once when written. `grad` is never written to. Nothing of
size V is allocated unless `rows` is None. A row that is not in `rows` keeps every bit. Rows of a sparse gradient whose
sum is all zeros are not in `rows`: `used_rows` (sparse_grad.py) drops them.
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
_BLOCK = 1 << 19  # bytes of gradient per block: intermediate results then stay in the CPU cache


def _in_blocks(update: Callable[_P, None]) -> Callable[_P, None]:
    """Run an update block by block, with the same bits: rows are independent of each other."""

    @wraps(update)
    def run(*args: _P.args, **options: _P.kwargs) -> None:
        param, rows, grad, *state = cast(Any, args)
        # One count for all rows must be incremented once per step, not once per block.
        shared_count = any(tensor is not None and tensor.dim() == 0 for tensor in state)
        size = max(1, _BLOCK * len(grad) // max(1, grad.numel() * grad.element_size()))
        if rows is None or shared_count or len(rows) <= size or grad.device.type != "cpu":
            return update(*args, **options)
        for block_rows, block_grad in zip(rows.split(size), grad.split(size), strict=True):
            cast(Any, update)(param, block_rows, block_grad, *state, **options)

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
    """Do one step of SGD on `rows`: L2 decay, lazy momentum, Nesterov.

    Args:
        param: Table, shape (V, *), changed in place.
        rows: Rows to change, shape (n,), or None for all.
        grad: Their gradient, shape (n, *).
        momentum_buffer: Shape (V, *), zero at first, changed in place; None without momentum.
        used: Bool, shape (V,), False at first, changed in place: at the first use of a row its momentum is set to the
            gradient, undampened. None when `dampening` is 0, where a buffer of zeros gives the same.
        lr: Learning rate.
        momentum: Momentum factor.
        dampening: The gradient is added to the momentum times `1 - dampening`.
        nesterov: Step along the gradient plus `momentum` times the new momentum.
        weight_decay: Times the row itself, added to its gradient.
        maximize: Step along the gradient, not against it.
    """
    value = _gather(param, rows, grad)
    grad = _descent_direction(grad, value, weight_decay, maximize)
    if momentum_buffer is not None:
        buffer = _gather(momentum_buffer, rows, grad)
        first = None if used is None else ~_gather(used, rows)  # (n,)
        buffer.mul_(momentum).add_(grad.mul(1 - dampening))
        if first is not None and used is not None:
            buffer = torch.where(_per_row(first, grad), grad, buffer)
            _scatter_(used, rows, torch.ones_like(first))
        _scatter_(momentum_buffer, rows, buffer)
        grad = grad.add(buffer.mul(momentum)) if nesterov else buffer
    value.sub_(grad.mul(lr))
    _scatter_(param, rows, value)


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
    """Do one step of Adagrad on `rows`, with a sum of squares for each element or one for each row.

    Args:
        param: Table, shape (V, *), changed in place.
        rows: Rows to change, shape (n,), or None for all.
        grad: Their gradient, shape (n, *).
        state_sum: Sum of squared gradients, shape (V, *), changed in place; or, if `param` has more than one dimension,
            shape (V,), the sum of their mean over a row. That mean is `folded_sum` divided by the elements of a row.
        step: int32 counts, changed in place; None when `lr_decay` is 0, since they are not needed then.
        lr: Learning rate.
        lr_decay: At use t, counted from 1, the rate is `lr / (1 + (t - 1) * lr_decay)`.
        eps: Added to the square root of the sum.
        weight_decay: Times the row itself, added to its gradient.
        maximize: Step along the gradient, not against it.
    """
    value = _gather(param, rows, grad)
    grad = _descent_direction(grad, value, weight_decay, maximize)
    total = _gather(state_sum, rows, grad)
    square = grad.mul(grad)
    total.add_(square if total.dim() == grad.dim() else folded_sum(square).div_(grad[0].numel() if len(grad) else 1))
    _scatter_(state_sum, rows, total)
    divisor = _per_row(sqrt(total).add_(eps), grad)
    rate = lr if step is None else _per_row(decayed_rates(count_uses(step, rows), lr, lr_decay).to(grad.dtype), grad)
    value.sub_(grad.mul(rate).div_(divisor))
    _scatter_(param, rows, value)


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
    """Do one step of AdamW on `rows`, decay on these rows only, AMSGrad if `max_exp_avg_sq` is given.

    Args:
        param: Table, shape (V, *), changed in place.
        rows: Rows to change, shape (n,), or None for all.
        grad: Their gradient, shape (n, *).
        exp_avg: Running average of the gradient, shape (V, *), changed in place.
        exp_avg_sq: Running average of its square, shape (V, *), changed in place.
        max_exp_avg_sq: Largest `exp_avg_sq` so far, shape (V, *), changed in place, or None.
        step: int32 counts, shape (V,) or (), changed in place.
        lr: Learning rate.
        beta1: Decay rate of `exp_avg`.
        beta2: Decay rate of `exp_avg_sq`.
        eps: Added to the square root.
        weight_decay: The rows are first multiplied by `1 - lr * weight_decay`.
        maximize: Step along the gradient, not against it.
    """
    value = _gather(param, rows, grad)
    if weight_decay != 0:
        value.mul_(1 - lr * weight_decay)
    if maximize:
        grad = grad.neg()
    mean = _gather(exp_avg, rows, grad)
    scratch = grad.sub(mean)  # reused below: allocating memory costs more than the operations on it
    # The two forms of torch's lerp, which takes the first below a weight of 0.5: they differ for infinite gradients.
    if 1 - beta1 < 0.5:
        mean.add_(scratch.mul_(1 - beta1))
    else:
        torch.sub(grad, scratch.mul_(beta1), out=mean)
    _scatter_(exp_avg, rows, mean)
    square = _gather(exp_avg_sq, rows, grad)
    square.mul_(beta2).add_(torch.mul(grad, 1 - beta2, out=scratch).mul_(grad))
    _scatter_(exp_avg_sq, rows, square)
    if max_exp_avg_sq is not None:
        square = torch.maximum(_gather(max_exp_avg_sq, rows, grad), square)
        _scatter_(max_exp_avg_sq, rows, square)
    corrections = bias_corrections(count_uses(step, rows), lr, beta1, beta2)
    step_size, correction = (_per_row(x.to(grad.dtype), grad) for x in corrections)
    value.sub_(torch.mul(mean, step_size, out=scratch).div_(sqrt(square).div_(correction).add_(eps)))
    _scatter_(param, rows, value)


def count_uses(step: Tensor, rows: Tensor | None) -> Tensor:
    """Count one more use of `rows` in `step`; return the new counts, float64, (n,), or () if all rows share one."""
    if rows is None or step.dim() == 0:
        return step.add_(1).double()
    count = step.index_select(0, rows).add_(1)
    step.index_copy_(0, rows, count)
    return count.double()


def decayed_rates(t: Tensor, lr: float, lr_decay: float) -> Tensor:
    """Return Adagrad's learning rate at use `t`, float64."""
    return lr / (1 + (t - 1) * lr_decay)


def bias_corrections(t: Tensor, lr: float, beta1: float, beta2: float) -> tuple[Tensor, Tensor]:
    """Return `lr / (1 - beta1^t)` and `sqrt(1 - beta2^t)`, float64."""
    return lr / _one_minus_power(beta1, t), sqrt(_one_minus_power(beta2, t))


def _one_minus_power(beta: float, t: Tensor) -> Tensor:
    """Return `1 - beta^t`."""
    # Looked up on the CPU: the last bit of torch's power depends on the element's index, by which it is vectorized.
    if t.device.type != "cpu":
        return 1 - beta**t
    table = one_minus_powers(beta, int(t.max()) if t.numel() else 0)
    return table.take(t.clamp(max=len(table) - 1).long())


def one_minus_powers(beta: float, largest: int) -> Tensor:
    """Return `1 - beta^t` for t = 0, 1, ..., up to at least `largest`, or to where all further ones are 1, float64."""
    end = math.ceil(-38 / math.log(beta)) if 0 < beta < 1 else 1  # e^-38 < 2^-54: the difference is 1
    return _powers(beta, min(1 << largest.bit_length(), end + 1))  # a power of two, so that the cache is hit


@lru_cache(maxsize=8)
def _powers(beta: float, count: int) -> Tensor:
    return torch.tensor([1 - beta**t for t in range(count)], dtype=torch.float64, device="cpu")


def sqrt(x: Tensor) -> Tensor:
    """Return the correctly rounded square root."""
    # numpy's, as torch's own, where it comes from MKL, gets the last bit of some values wrong.
    if x.device.type != "cpu":
        return x.sqrt()
    result = torch.empty_like(x)
    with np.errstate(invalid="ignore"):
        np.sqrt(x.numpy(), out=result.numpy())
    return result


def folded_sum(x: Tensor) -> Tensor:
    """Sum each row, (n, *) -> (n,): add the second half to the first until one element is left.

    With w elements left, elements `h, ..., w - 1` are added to elements `0, ..., w - h - 1`, where h = (w + 1) // 2.
    """
    # torch's sum has no documented order of additions, so its bits could not be reproduced.
    x = x.reshape(len(x), -1) if len(x) else x.new_zeros(0, 1)
    while (width := x.shape[1]) > 1:
        half = (width + 1) // 2
        x = torch.cat([x[:, : width - half] + x[:, half:], x[:, width - half : half]], dim=1)
    return x.reshape(-1)


def _descent_direction(grad: Tensor, value: Tensor, weight_decay: float, maximize: bool) -> Tensor:
    """Return the gradient to step against: the sign first, then L2 decay."""
    if maximize:
        grad = grad.neg()
    return value.mul(weight_decay).add_(grad) if weight_decay != 0 else grad


def _gather(table: Tensor, rows: Tensor | None, like: Tensor | None = None) -> Tensor:
    """Return the rows in the dtype of `like`; the table itself if `rows` is None and it has that dtype."""
    gathered = table if rows is None else table.index_select(0, rows)
    return gathered if like is None else gathered.to(like.dtype)


def _scatter_(table: Tensor, rows: Tensor | None, values: Tensor) -> None:
    """Write values to the rows of the table."""
    if rows is not None:
        values = values.to(table.dtype)
        wide_table, wide_values = _as_16_byte_elements(table), _as_16_byte_elements(values)
        if wide_table.dtype == wide_values.dtype:
            table, values = wide_table, wide_values
        table.index_copy_(0, rows, values)
    elif values is not table:
        table.copy_(values)


def _as_16_byte_elements(x: Tensor) -> Tensor:
    """View rows as elements of 16 bytes if possible: torch's `index_copy_` copies a row element by element."""
    size = 16 // x.element_size()
    if x.dim() < 2 or x.shape[-1] % size or x.storage_offset() % size or not x.is_contiguous():
        return x
    return x.view(torch.complex128)


def _per_row(x: Tensor, like: Tensor) -> Tensor:
    """Return a factor per row, shape (n,), with the trailing dimensions that broadcast to `like`, (n, *)."""
    return x.view(-1, *[1] * (like.dim() - 1)) if x.dim() < like.dim() else x
