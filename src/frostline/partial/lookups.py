"""Embedding, embedding_bag and linear on the two parts, never on the joined table.

Letters used for shapes in this file:
    V  rows of the table          D  width of a row
    R  rows that learn (R <= V)   *  any leading shape of ids or inputs

Each function has the signature of its namesake in `torch.nn.functional`. Costs are those of the ids and of the R rows:
nothing of size V x D is allocated, in the forward or in the backward.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from frostline.errors import PartialTensorError
from frostline.partial.tensor import LOOKUPS, PartialTensor


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
    _refuse_max_norm(max_norm)
    if not isinstance(weight, PartialTensor):
        return NotImplemented
    known = padding_idx is None or padding_idx in weight.selected.padding or weight.selected.learn_padding
    if weight.selected.slots is None or scale_grad_by_freq or not known:
        # The gradient of a joined tensor is dense, and a padding row that the plan knows nothing of gets none.
        return F.embedding(input, weight.joined(), padding_idx, scale_grad_by_freq=scale_grad_by_freq)
    return _look_up(input, weight, sparse)


def _look_up(ids: Tensor, weight: PartialTensor, sparse: bool) -> Tensor:
    found = F.embedding(ids, weight.frozen)  # (*, D)
    assert weight.selected.slots is not None
    slots = weight.selected.slots.index_select(0, ids.reshape(-1))  # (n,), -1 where the row is frozen
    if sparse:
        # Not as a decorator: that would import the compiler, a second, wherever frostline is imported.
        overwritten: Tensor = torch.compiler.disable(_sparse_gradient_needs_eager)(found, slots, weight.learned)
        return overwritten
    learns = (slots >= 0).view(*ids.shape, 1)
    learned = F.embedding(slots.clamp(min=0).view(ids.shape), weight.learned)
    return torch.where(learns, learned.to(found.dtype), found)


def _sparse_gradient_needs_eager(found: Tensor, slots: Tensor, learned: Tensor) -> Tensor:
    """Overwrite `found` where `slots` >= 0, so that only the rows in use get an entry in the sparse gradient.

    A compiler would make the gradient dense, and a row optimizer would then move rows that no id named; so it is kept
    out: `fullgraph=True` says so instead of training other rows.
    """
    positions = (slots >= 0).nonzero().squeeze(1)
    values = F.embedding(slots[positions], learned, sparse=True)
    flat = found.reshape(len(slots), -1)
    return flat.index_copy(0, positions, values.to(found.dtype)).view_as(found)


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
    """Look the ids up, then reduce the looked-up rows, modes sum, mean and max: ids -> (bags, D)."""
    _refuse_max_norm(max_norm)
    if not isinstance(weight, PartialTensor):
        return NotImplemented
    if weight.selected.slots is None or scale_grad_by_freq:
        return F.embedding_bag(
            input,
            weight.joined(),
            offsets,
            scale_grad_by_freq=scale_grad_by_freq,
            mode=mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=include_last_offset,
            padding_idx=padding_idx,
        )
    ids = input.reshape(-1)
    places = torch.arange(len(ids), device=ids.device, dtype=ids.dtype)
    if padding_idx is not None:  # the padding row is looked up last, and skipped there
        padding = padding_idx % weight.shape[0]
        places = torch.where(ids == padding, len(ids), places)
        ids = torch.cat([ids, ids.new_full((1,), padding)])
    return F.embedding_bag(
        places.view(input.shape),
        _look_up(ids, weight, sparse),
        offsets,
        mode=mode,
        per_sample_weights=per_sample_weights,
        include_last_offset=include_last_offset,
        padding_idx=None if padding_idx is None else len(ids) - 1,
    )


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """One product with the frozen part, one with the R learned rows put in its place: (*, D) -> (*, V)."""
    if not _rows_learn(weight) or weight.ndim != 2 or isinstance(input, PartialTensor):
        return NotImplemented
    if isinstance(bias, PartialTensor):
        bias = bias.joined()  # V numbers, as many as one output row
    (ids,) = weight.selected.places
    out = F.linear(input, weight.frozen, bias)
    learned = weight.learned.to(weight.frozen.dtype)
    return out.index_copy(-1, ids, F.linear(input, learned, None if bias is None else bias[ids]))


def _rows_learn(weight: Tensor) -> TypeGuard[PartialTensor]:
    return isinstance(weight, PartialTensor) and weight.selected.slots is not None


def _refuse_max_norm(max_norm: float | None) -> None:
    if max_norm is not None:
        raise PartialTensorError(
            f"max_norm={max_norm} rewrites frozen rows in the forward. Set max_norm=None on the module that looks up."
        )


LOOKUPS.update({F.embedding: embedding, F.embedding_bag: embedding_bag, F.linear: linear})
