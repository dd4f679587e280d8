"""Embedding, embedding_bag and linear on the two parts, without merging them.

Letters used for shapes in this file:
    V  rows of the table          D  width of a row
    R  rows that learn (R <= V)   *  any leading shape of ids or inputs

Each function has the signature of its namesake in `torch.nn.functional`. The frozen part is always used detached, so
that it gets no gradient even if other code sets its `requires_grad`, as `model.requires_grad_(True)` does. The cost is
that of the ids and of the R rows: nothing of size V x D is allocated, in the forward or in the backward.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from frostline.errors import PartialTensorError
from frostline.partial.tensor.partial_tensor import OVERRIDES, PartialTensor


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """Look up in the frozen part, then overwrite the positions whose id learns: ids (*) -> (*, D)."""
    _check_max_norm(max_norm)
    if not isinstance(weight, PartialTensor):
        return NotImplemented
    if weight.learned_indices.learn_padding:
        padding_idx = None  # the caller asked for it; torch would give the row no gradient
    known = padding_idx is None or padding_idx in weight.learned_indices.padding
    if weight.learned_indices.row_to_slot is None or scale_grad_by_freq or not known:
        # On the merged tensor: torch counts ids for `scale_grad_by_freq`, and skips a padding row that the plan did
        # not know of, when it computes the gradient of the whole table. That gradient is dense.
        return F.embedding(input, weight.merged(), padding_idx, scale_grad_by_freq=scale_grad_by_freq)
    return _look_up(input, weight, sparse)


def _look_up(ids: Tensor, weight: PartialTensor, sparse: bool) -> Tensor:
    """Return the rows `ids` (*) of the table, (*, D)."""
    weight.memory.check_in_use()
    looked_up = F.embedding(ids, weight.frozen.detach())  # (*, D)
    assert weight.learned_indices.row_to_slot is not None
    slots = weight.learned_indices.row_to_slot.index_select(0, ids.reshape(-1))  # (n,), -1 where the row is frozen
    if sparse:
        # Not a decorator: that would import the compiler, which takes a second, with every `import frostline`.
        overwritten: Tensor = torch.compiler.disable(_sparse_gradient_needs_eager)(looked_up, slots, weight.learned)
        return overwritten
    learns = (slots >= 0).view(*ids.shape, 1)
    # Frozen rows look up slot 0, which `where` drops again: fixed shapes need no wait for the device, and no new graph.
    learned = F.embedding(slots.clamp(min=0).view(ids.shape), weight.learned)
    return torch.where(learns, learned.to(looked_up.dtype), looked_up)


def _sparse_gradient_needs_eager(looked_up: Tensor, slots: Tensor, learned: Tensor) -> Tensor:
    """Return `looked_up` with learned rows where `slots` >= 0; only the rows in use appear in the sparse gradient.

    Always runs eagerly. A compiler would make the gradient dense, and a row optimizer would then move rows that no id
    named. Under `fullgraph=True` torch raises an error that shows the name of this function.
    """
    positions = (slots >= 0).nonzero().squeeze(1)
    values = F.embedding(slots[positions], learned, sparse=True)
    flat = looked_up.reshape(len(slots), -1)
    return flat.index_copy(0, positions, values.to(looked_up.dtype)).view_as(looked_up)


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    """Look the ids up, then reduce the rows of each bag by sum, mean or max: ids -> (bags, D)."""
    _check_max_norm(max_norm)
    if not isinstance(weight, PartialTensor):
        return NotImplemented
    if weight.learned_indices.row_to_slot is None or scale_grad_by_freq:
        return F.embedding_bag(
            input,
            weight.merged(),
            offsets,
            scale_grad_by_freq=scale_grad_by_freq,
            mode=mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=include_last_offset,
            padding_idx=padding_idx,
        )
    ids = input.reshape(-1)
    positions = torch.arange(len(ids), device=ids.device, dtype=ids.dtype)
    if padding_idx is not None:  # every padding id refers to one looked-up row, the last, which torch then skips
        padding = padding_idx % weight.shape[0]
        positions = torch.where(ids == padding, len(ids), positions)
        ids = torch.cat([ids, ids.new_full((1,), padding)])
    return F.embedding_bag(
        positions.view(input.shape),
        _look_up(ids, weight, sparse),
        offsets,
        mode=mode,
        per_sample_weights=per_sample_weights,
        include_last_offset=include_last_offset,
        padding_idx=None if padding_idx is None else len(ids) - 1,
    )


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """Multiply by the frozen part, then overwrite the columns of the R learned rows: (*, D) -> (*, V).

    Two products, and not one with the whole tensor, so that every process and compiler gets the same bits.
    """
    if not _rows_learn(weight) or weight.ndim != 2 or isinstance(input, PartialTensor):
        return NotImplemented
    if isinstance(bias, PartialTensor):
        bias = bias.merged()  # (V,): a compiler would lose the gradient of a bias passed on as it is
    if input.requires_grad:
        weight.sync()  # a NaN that was in a learned row would reach the gradient of the input: 0 * NaN is NaN
    weight.memory.check_in_use()
    (ids,) = weight.learned_indices.index
    out = F.linear(input, weight.frozen.detach(), bias)
    learned = weight.learned.to(weight.frozen.dtype)
    return out.index_copy(-1, ids, F.linear(input, learned, None if bias is None else bias[ids]))


def _rows_learn(weight: Tensor) -> TypeGuard[PartialTensor]:
    return isinstance(weight, PartialTensor) and weight.learned_indices.row_to_slot is not None


def _check_max_norm(max_norm: float | None) -> None:
    if max_norm is not None:
        raise PartialTensorError(
            f"max_norm={max_norm} rewrites frozen rows in the forward. Set max_norm=None on the module that looks up."
        )


OVERRIDES.update({F.embedding: embedding, F.embedding_bag: embedding_bag, F.linear: linear})
