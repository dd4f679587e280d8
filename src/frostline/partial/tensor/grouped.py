"""The grouped product of a mixture of experts, of which some experts learn.

Letters used for shapes in this file:
    n  tokens, in the order of their experts      E  experts, the rows of the weight
    D, H  width of the input and of the output    R  experts that learn

`grouped_mm(x, weight, offs)` multiplies each of the tokens (n, D) by the matrix of its expert, of weight (E, D, H):
expert e has the tokens from `offs[e - 1]` to `offs[e]`. The backward here computes the gradient of the learned experts
alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from frostline.partial.tensor.dispatch import VIEW_OVERRIDES, MemoryTensor, PartialView, memory_of
from frostline.partial.tensor.memory import version_of
from frostline.partial.tensor.partial_tensor import OVERRIDES, PartialTensor
from frostline.partial.tensor.products import letters_of_whole, weight_as_it_was


class _Job(NamedTuple):
    weight: PartialTensor
    version: int  # of the weight
    transposed: bool  # it is given as (E, D, H), and is (E, H, D)


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, memory: Tensor, offs: Tensor, learned: Tensor, job: _Job) -> Tensor:
        ctx.save_for_backward(input, memory if ctx.needs_input_grad[0] else None, offs)
        ctx.job = job
        return F.grouped_mm(input, memory, offs=offs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        job: _Job = ctx.job
        input, memory, offs = ctx.saved_tensors  # raises if the weight was written to since
        for_input = for_learned = None
        if ctx.needs_input_grad[0]:
            if torch.is_grad_enabled():  # a gradient penalty: the weight is in the graph of the gradient, too
                memory = weight_as_it_was(job.weight, job.version)
                memory = memory.transpose(1, 2) if job.transposed else memory
            for_input = F.grouped_mm(gradient, memory.transpose(1, 2), offs=offs)
        if ctx.needs_input_grad[3]:
            ends = [0, *offs.tolist()]
            factors = (gradient, input) if job.transposed else (input, gradient)
            learn = [
                factors[0][ends[expert] : ends[expert + 1]].T @ factors[1][ends[expert] : ends[expert + 1]]
                for expert in job.weight.learned_indices.flat.tolist()
            ]
            for_learned = torch.stack(learn).to(job.weight.learned.dtype)
        return for_input, None, None, for_learned, None


_grouped = _Grouped.apply  # as it is now: explain patches `Function.apply` to follow the Functions of others


def grouped_mm(*args: Any, offs: Tensor | None = None, **others: Any) -> Any:
    """Return what `torch.nn.functional.grouped_mm` does for tokens (n, D): (n, H)."""
    if len(args) != 2 or offs is None or any(each is not None for each in others.values()):
        return NotImplemented
    input, weight = args
    if not isinstance(weight, MemoryTensor) or isinstance(input, MemoryTensor) or input.ndim != 2 or weight.ndim != 3:
        return NotImplemented
    whole = letters_of_whole(weight, "edh")
    if whole not in ("edh", "ehd") or weight.origin.learned_indices.kind != "rows":
        return NotImplemented
    weight.origin.sync()
    if isinstance(weight, PartialView):
        weight.passed_by = True
    job = _Job(weight.origin, version_of(weight.origin.frozen), whole == "ehd")
    return _grouped(input, memory_of(weight), offs, weight.origin.learned, job)  # type: ignore[no-untyped-call]


if hasattr(F, "grouped_mm"):  # torch 2.10
    OVERRIDES[F.grouped_mm] = VIEW_OVERRIDES[F.grouped_mm] = grouped_mm
if hasattr(torch, "_grouped_mm"):
    OVERRIDES[torch._grouped_mm] = VIEW_OVERRIDES[torch._grouped_mm] = grouped_mm
