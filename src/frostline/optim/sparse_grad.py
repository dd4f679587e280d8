"""Which rows a gradient uses, each listed once, and the summed gradient of each.

Letters used for shapes in this file:
    V  rows of the table          k  entries of a sparse gradient, rows repeated in any order
    n  rows in use                *  the shape of one row

A dense gradient uses every row. A sparse gradient uses the rows that it names, but rows whose summed gradient is
exactly zero are dropped: if `stop_gradient` stopped every position of a row, neither decay nor momentum moves it. NaN
is not zero.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from frostline.optim import kernel


def used_rows(grad: Tensor, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
    """Return the rows that `grad` uses and their summed gradient.

    Args:
        grad: The gradient of a parameter of shape (V, *): dense, or sparse COO over dimension 0.
        dtype: The dtype to sum in and to return.

    Returns:
        For a dense gradient: None, which means every row, and the gradient itself, shape (V, *). For a sparse one: the
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
    ids, values = grad._indices()[0], grad._values().to(dtype)
    if not grad.is_coalesced():
        grouped = kernel.group_by_row(ids, values, len(grad))
        if grouped is not None:
            rows, gradient = grouped
            return rows, gradient.to_tensor()
    if len(ids):
        low, high = (int(row) for row in ids.aminmax())
        if low < 0 or high >= len(grad):
            wrong = low if low < 0 else high
            raise ValueError(f"grad: names row {wrong}, but the table has {len(grad)} rows, 0 to {len(grad) - 1}.")
    rows = ids
    if not grad.is_coalesced():
        rows, index = _unique_rows(ids, len(grad))
        values = values.new_zeros(len(rows), *values.shape[1:]).index_add_(0, index, values)
    if values.numel():
        nonzero = values.reshape(len(values), -1).abs().amax(dim=1) != 0  # (n,), True for NaN
        if not nonzero.all():
            rows, values = rows[nonzero], values[nonzero]
    return rows, values


def _unique_rows(ids: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the distinct ids, sorted, (k,) -> (n,), and the index of each id among them, (k,); ids are below `size`.

    On the CPU it uses numpy's sort, many times faster than torch's `unique`.
    """
    if ids.device.type != "cpu" or max(size, len(ids)) >= 2**31:
        rows, index = ids.unique(return_inverse=True)
        return rows, index
    # One sort instead of an argsort: each key holds an id in its upper half and the id's position in its lower half.
    keys = (ids.numpy() << 32) | np.arange(len(ids))
    keys.sort()
    sorted_ids, positions = keys >> 32, keys & 0xFFFFFFFF
    is_first = np.ones(len(ids), dtype=bool)
    is_first[1:] = sorted_ids[1:] != sorted_ids[:-1]
    index = np.empty_like(positions)
    index[positions] = np.cumsum(is_first) - 1
    return torch.from_numpy(sorted_ids[is_first]), torch.from_numpy(index)
