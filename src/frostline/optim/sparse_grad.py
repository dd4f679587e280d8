"""Which rows a gradient uses, each once, and the sum of what it says about each.

Letters used for shapes in this file:
    V  rows of the table          k  entries of a sparse gradient, rows repeated in any order
    n  rows that are used         *  the shape of one row

A dense gradient uses every row. A sparse one uses the rows that it names, unless all it says about a row sums to exact
zeros: so a row whose every position went through `stop_gradient` is not used, and neither decay nor momentum moves it.
NaN is not zero.
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
    ids, values = grad._indices()[0], grad._values().to(dtype)
    if not grad.is_coalesced():
        done = kernel.summed(ids, values, len(grad))
        if done is not None:
            return done
    if len(ids):
        least, most = (int(x) for x in ids.aminmax())
        if least < 0 or most >= len(grad):
            wrong = least if least < 0 else most
            raise ValueError(f"grad: names row {wrong}, but the table has {len(grad)} rows, 0 to {len(grad) - 1}.")
    rows = ids
    if not grad.is_coalesced():
        rows, place = _unique(ids, len(grad))
        values = values.new_zeros(len(rows), *values.shape[1:]).index_add_(0, place, values)
    if values.numel():
        says_something = values.reshape(len(values), -1).abs().amax(dim=1) != 0  # (n,)
        if not says_something.all():
            rows, values = rows[says_something], values[says_something]
    return rows, values


def _unique(ids: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the different ids (k,) -> (n,), sorted, all of them below `size`, and the place of each id in them, (k,).

    On the CPU by numpy's sort, many times faster than torch's: of one number an id, which holds the id and where it is.
    """
    if ids.device.type != "cpu" or max(size, len(ids)) >= 2**31:
        rows, place = ids.unique(return_inverse=True)
        return rows, place
    pairs = (ids.numpy() << 32) | np.arange(len(ids))
    pairs.sort()
    in_order, at = pairs >> 32, pairs & 0xFFFFFFFF
    first = np.ones(len(ids), dtype=bool)
    first[1:] = in_order[1:] != in_order[:-1]
    place = np.empty_like(at)
    place[at] = np.cumsum(first) - 1
    return torch.from_numpy(in_order[first]), torch.from_numpy(place)
