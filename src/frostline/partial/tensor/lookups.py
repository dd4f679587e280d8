"""Embedding, embedding_bag and indexing by ids on the two parts, without merging them.

Letters used for shapes in this file:
    V  rows of the table          D  width of a row
    R  rows that learn (R <= V)   *  any leading shape of ids or inputs

Each function has the signature of its namesake in `torch.nn.functional`. The frozen part is always used detached, so
that it gets no gradient even if other code sets its `requires_grad`, as `model.requires_grad_(True)` does. The cost is
that of the ids and of the R rows: nothing of size V x D is allocated, in the forward or in the backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from frostline.errors import PartialTensorError
from frostline.partial.tensor.dispatch import may_use_functions
from frostline.partial.tensor.indices import copy_rows_
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
    check_max_norm(max_norm)
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


def index_select(input: Tensor, dim: int, index: Tensor, *, out: Tensor | None = None) -> Any:
    """Return the rows `index` (n,) of the table, as a copy (n, *)."""
    if not isinstance(input, PartialTensor) or dim not in (0, -input.ndim) or index.ndim != 1 or out is not None:
        return NotImplemented
    return index_rows(input, index)


def index_rows(weight: PartialTensor, ids: Tensor) -> Any:
    """Return the rows `ids` (*) of the table, as a copy: what `weight[ids]` does. Ids below 0 count from the end."""
    if not _rows_learn(weight) or ids.dtype not in (torch.int64, torch.int32) or type(ids) is not Tensor:
        return NotImplemented
    if ids.device != weight.device or weight.is_meta or (weight.ndim != 2 and not _by_function(ids, weight)):
        return NotImplemented
    return _look_up(torch.where(ids < 0, ids + len(weight), ids), weight, sparse=False)


class _LookUp(torch.autograd.Function):
    """Rows of the table; of their gradient, those that learn are summed up for the learned part."""

    @staticmethod
    def forward(ctx: Any, learned: Tensor, parts: tuple[Tensor, Tensor], ids: Tensor, sparse: bool) -> Tensor:
        frozen, row_to_slot = parts  # not arguments: hooks would run on the frozen part if other code lets it learn
        flat = ids.reshape(-1)
        slots = row_to_slot.index_select(0, flat)  # (n,), -1 where the row is frozen
        positions = (slots >= 0).nonzero().squeeze(1)
        slots = slots.index_select(0, positions)
        ctx.save_for_backward(positions, slots)
        ctx.shape, ctx.dtype, ctx.ids, ctx.sparse = learned.shape, learned.dtype, len(flat), sparse
        out = frozen.detach().index_select(0, flat)
        if len(slots):
            copy_rows_(out, positions, learned.detach().index_select(0, slots).to(out.dtype))
        return out.view(*ids.shape, *frozen.shape[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        positions, slots = ctx.saved_tensors
        rows = gradient.reshape(ctx.ids, *ctx.shape[1:]).index_select(0, positions).to(ctx.dtype)
        return _sum_rows(rows, slots, ctx.shape, ctx.sparse), None, None, None


def _sum_rows(rows: Tensor, slots: Tensor, shape: torch.Size, sparse: bool) -> Tensor:
    """Return the gradient of the learned part, of `shape`, from its `rows` that were looked up."""
    if sparse:
        with torch.sparse.check_sparse_tensor_invariants(False):
            return torch.sparse_coo_tensor(slots.long().unsqueeze(0), rows, shape)
    if rows.numel() and not torch.is_grad_enabled():  # sums in the order of `F.embedding`, which rounds a bfloat16 once
        flat: Tensor = torch.ops.aten.embedding_dense_backward(rows.reshape(len(slots), -1), slots, shape[0], -1, False)
        return flat.view(shape)
    return rows.new_zeros(shape).index_add(0, slots, rows)


rows_of: Callable[..., Tensor] = _LookUp.apply  # now: explain patches `Function.apply` to follow others' Functions


def _by_function(ids: Tensor, weight: PartialTensor) -> bool:
    return may_use_functions() and not weight.stands_in and ids.device.type == "cpu"


def _look_up(ids: Tensor, weight: PartialTensor, sparse: bool) -> Tensor:
    """Return the rows `ids` (*) of the table, (*, D)."""
    weight.memory.check_in_use()
    row_to_slot = weight.learned_indices.row_to_slot
    assert row_to_slot is not None
    if sparse and torch.compiler.is_compiling():
        # Not a decorator: that would import the compiler, which takes a second, with every `import frostline`.
        rows: Tensor = torch.compiler.disable(_sparse_gradient_needs_eager)(ids, weight, row_to_slot)
        return rows
    if _by_function(ids, weight) or (sparse and may_use_functions()):
        return rows_of(weight.learned, (weight.frozen, row_to_slot), ids, sparse)
    slots = row_to_slot.index_select(0, ids.reshape(-1)).view(ids.shape)  # -1 where the row is frozen
    looked_up = F.embedding(ids, weight.frozen.detach())  # (*, D)
    if sparse:  # torch.func
        positions = (slots >= 0).flatten().nonzero().squeeze(1)
        values = F.embedding(slots.flatten()[positions], weight.learned, sparse=True).to(looked_up.dtype)
        return looked_up.flatten(0, -2).index_copy(0, positions, values).view_as(looked_up)
    # Frozen rows look up slot 0, which `where` drops again: fixed shapes need no wait for the device, and no new graph.
    if torch.compiler.is_compiling() and ids.device.type == "cpu":
        learned: Tensor = torch.ops.frostline.traced_rows(weight.learned, slots)
    else:
        learned = F.embedding(slots.clamp(min=0), weight.learned)
    return torch.where((slots >= 0).unsqueeze(-1), learned.to(looked_up.dtype), looked_up)


def _sparse_gradient_needs_eager(ids: Tensor, weight: PartialTensor, row_to_slot: Tensor) -> Tensor:
    """Return the rows `ids` (*) of the table; only the rows in use appear in the sparse gradient.

    Always runs eagerly. A compiler would make the gradient dense, and a row optimizer would then move rows that no id
    named. Under `fullgraph=True` torch raises an error that shows the name of this function.
    """
    return rows_of(weight.learned, (weight.frozen, row_to_slot), ids, sparse=True)


def _sum_of_rows(gradient: Tensor, slots: Tensor, rows: int) -> Tensor:
    """Return the sum (R, D) of the rows of `gradient` (n, D) for each slot (n,); those of slot -1 are dropped."""
    positions = (slots >= 0).nonzero().squeeze(1)
    found, shape = gradient.index_select(0, positions), (rows, gradient.shape[1])
    return _sum_rows(found, slots.index_select(0, positions), torch.Size(shape), sparse=False)


# An operator that a compiler calls as it is: its own would add the zeros of all frozen rows to row 0, one by one.
_LIBRARY = torch.library.Library("frostline", "DEF")
_LIBRARY.define("sum_of_rows(Tensor gradient, Tensor slots, int rows) -> Tensor")
_LIBRARY.impl("sum_of_rows", _sum_of_rows, "CPU")
_LIBRARY.impl("sum_of_rows", lambda gradient, slots, rows: gradient.new_empty(rows, gradient.shape[1]), "Meta")


def _traced_rows(learned: Tensor, slots: Tensor) -> Tensor:
    """Return rows of the learned part, (*, D), as a compiled graph looks them up: any row where the slot is -1."""
    return F.embedding(slots.clamp(min=0), learned)


def _save_slots(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.rows = inputs[0].shape[0]


def _traced_gradient(ctx: Any, gradient: Tensor) -> Any:
    (slots,) = ctx.saved_tensors
    flat = gradient.reshape(-1, gradient.shape[-1])
    return torch.ops.frostline.sum_of_rows(flat, slots.reshape(-1), ctx.rows), None


# Not an `autograd.Function`: while it traces one, torch's compiler warns of its own doing.
_LIBRARY.define("traced_rows(Tensor learned, Tensor slots) -> Tensor")
_LIBRARY.impl("traced_rows", _traced_rows, "CPU")
_LIBRARY.impl("traced_rows", _traced_rows, "Meta")
torch.library.register_autograd("frostline::traced_rows", _traced_gradient, setup_context=_save_slots, lib=_LIBRARY)


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
    check_max_norm(max_norm)
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


def _rows_learn(weight: Tensor) -> TypeGuard[PartialTensor]:
    return isinstance(weight, PartialTensor) and weight.learned_indices.row_to_slot is not None


def check_max_norm(max_norm: float | None) -> None:
    """Raise if a lookup is asked to rewrite rows."""
    if max_norm is not None:
        raise PartialTensorError(
            f"max_norm={max_norm} rewrites frozen rows in the forward. Set max_norm=None on the module that looks up."
        )


OVERRIDES.update({F.embedding: embedding, F.embedding_bag: embedding_bag})
OVERRIDES.update(dict.fromkeys((torch.index_select, Tensor.index_select), index_select))
