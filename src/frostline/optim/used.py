"""Which rows a gradient uses, each once, and the sum of what it says about each.

Letters used for shapes in this file:
    V  rows of the table          k  entries of a sparse gradient, rows repeated in any order
    n  rows that are used         *  the shape of one row

A dense gradient uses every row. A sparse one uses the rows that it names, unless all it says about a row sums to exact
zeros: so a row whose every position went through `stop_gradient` is not used, and neither decay nor momentum moves it.
NaN is not zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from frostline.optim import kernel


def used_rows(grad: Tensor, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
    """Return the rows that `grad` uses and their summed gradient.

    Args:
        grad: The gradient of a parameter of shape (V, *): dense, or sparse COO over dimension 0.
        dtype: The dtype to sum in and to return.

    Returns:
        For a dense gradient None, which means every row, and the gradient itself, shape (V, *). For a sparse one the
        row ids, int64, sorted, shape (n,), and their gradient, shape (n, *).

    Raises:
        ValueError: A sparse gradient that is not COO over dimension 0 alone, or that names a row outside the table.

    Cost: one sort and one sum of the k entries.
    """
    if grad.layout == torch.strided:
        return None, grad.to(dtype)
    if grad.layout != torch.sparse_coo or grad.sparse_dim() != 1:
        raise ValueError(
            f"grad: layout {grad.layout}, shape {tuple(grad.shape)}, but a sparse gradient must be torch.sparse_coo "
            "with sparse_dim 1, as nn.Embedding(sparse=True) makes it. Pass `grad.to_dense()`."
        )
    if not grad.is_coalesced():
        done = kernel.summed(grad._indices()[0], grad._values().to(dtype), len(grad))
        if done is not None:
            return done
    rows, values = summed(grad, dtype)
    if len(rows) and (rows[0] < 0 or rows[-1] >= len(grad)):
        wrong = int(rows[0] if rows[0] < 0 else rows[-1])
        raise ValueError(f"grad: names row {wrong}, but the table has {len(grad)} rows, 0 to {len(grad) - 1}.")
    if values.numel():
        says_something = values.reshape(len(values), -1).ne(0).any(dim=1)  # (n,)
        if not says_something.all():
            rows, values = rows[says_something], values[says_something]
    return rows, values


def summed(grad: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Sum the entries of each row of a sparse gradient: (k,) ids, (k, *) values -> (n,) sorted ids, (n, *) sums."""
    ids, values = grad._indices()[0], grad._values().to(dtype)
    if grad.is_coalesced():
        return ids, values
    rows, place = ids.unique(return_inverse=True)
    return rows, values.new_zeros(len(rows), *values.shape[1:]).index_add_(0, place, values)
