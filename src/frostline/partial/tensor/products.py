"""Products with a partial tensor: linear, matmul, bmm, einsum. Their gradient is computed of what learns alone.

The product runs on the memory, as that of a plain tensor, with the same bits. Of the gradient, which for a plain tensor
is as large as the weight and costs as much as the product itself, only the learned rows (experts), or the learned
entries are computed. With few of them a step costs what it costs if all is frozen.

Each product is told by letters, as `torch.einsum` tells it: "nd,vd->nv" is `F.linear`. Where fewer or more would not
pay (tiny products; more than a seventh of the entries), or the letters cannot tell it, autograd does as it would.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from frostline.partial.tensor.dispatch import (
    VIEW_OVERRIDES,
    MemoryTensor,
    PartialView,
    is_watched,
    may_use_functions,
    memory_of,
)
from frostline.partial.tensor.memory import version_of
from frostline.partial.tensor.partial_tensor import OVERRIDES, PartialTensor
from frostline.partial.tensor.views import has_own_gradient

# More of the entries, and the whole gradient is quicker; fewer multiplications, and it is too (both measured).
_MOST_ENTRIES, _FEWEST_MULTIPLICATIONS = 0.15, 2**22


class _Job(NamedTuple):
    """One product, and the letters of its terms."""

    compute: Callable[..., Tensor]  # of the input, the memory and a bias
    weight: PartialTensor
    version: int  # of the weight
    input: str
    given: str  # letters of the weight's memory, as it is given: transposed
    whole: str  # letters of `weight`, in its own order
    output: str


class _Product(torch.autograd.Function):
    """A product with the memory of a weight, of which the learned part gets its own gradient alone."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, memory: Tensor, bias: Tensor | None, learned: Tensor, job: _Job) -> Tensor:
        ctx.save_for_backward(input, memory if ctx.needs_input_grad[0] else None)
        ctx.job, ctx.bias_shape = job, None if bias is None else bias.shape
        return job.compute(input, memory, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        job: _Job = ctx.job
        input, memory = ctx.saved_tensors  # raises if the weight was written to since
        given = job.given
        for_input = for_bias = for_learned = None
        if torch._C._functorch.is_legacy_batchedtensor(gradient):  # `is_grads_batched` knows few operations
            for_input, for_learned = _whole_gradients(job, gradient, input)
            return for_input, None, gradient.sum_to_size(ctx.bias_shape) if ctx.bias_shape else None, for_learned, None
        if ctx.needs_input_grad[0]:
            if torch.is_grad_enabled():  # a gradient penalty: the weight is in the graph of the gradient, too
                memory, given = weight_as_it_was(job.weight, job.version).to(gradient.dtype), job.whole
            for_input = _input_gradient(job, gradient, memory.conj(), given)
        if ctx.needs_input_grad[2]:
            for_bias = gradient.sum_to_size(ctx.bias_shape)
        if ctx.needs_input_grad[3]:
            learn = _rows_gradient if job.weight.learned_indices.kind == "rows" else _entries_gradient
            for_learned = learn(job, gradient, input.conj()).to(job.weight.learned.dtype)
        return for_input, None, for_bias, for_learned, None


_product = _Product.apply  # as it is now: explain patches `Function.apply` to follow the Functions of others


def weight_as_it_was(weight: PartialTensor, version: int) -> Tensor:
    """Return the whole weight, in the graph; RuntimeError if it was written to since, where torch raises one too."""
    whole = weight.merged()  # takes over what an optimizer wrote to the learned part
    if version_of(weight.frozen) != version:
        raise RuntimeError("a partial tensor was modified by an inplace operation between its use and a backward.")
    return whole


def _whole_gradients(job: _Job, gradient: Tensor, input: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the input and of what learns, as autograd does: with that of the whole weight."""
    with torch.enable_grad():
        input = input.detach().requires_grad_()
        weight = weight_as_it_was(job.weight, job.version).detach().to(gradient.dtype).requires_grad_()
        product = torch.einsum(f"{job.input},{job.whole}->{job.output}", input, weight)
    for_input, dense = torch.autograd.grad(product, (input, weight), gradient)
    return for_input, job.weight.learned_indices.gather(dense).to(job.weight.learned.dtype)


def _input_gradient(job: _Job, gradient: Tensor, weight: Tensor, given: str) -> Tensor:
    """Return the gradient of the input; a matrix is multiplied as it lies, where `einsum` would copy and be slower."""
    inner = [letter for letter in given if letter not in job.input]
    outer = [letter for letter in given if letter not in job.output]
    if len(given) != 2 or len(inner) != 1 or len(outer) != 1:
        return torch.einsum(f"{job.output},{given}->{job.input}", gradient, weight)
    matrix = weight if given == inner[0] + outer[0] else weight.T
    product = torch.matmul(gradient.movedim(job.output.index(inner[0]), -1), matrix)
    letters = job.output.replace(inner[0], "") + outer[0]
    return product.permute([letters.index(letter) for letter in job.input])


def _rows_gradient(job: _Job, gradient: Tensor, input: Tensor) -> Tensor:
    """Return the gradient of the learned rows: of both factors, only what belongs to these rows is used."""
    row, ids = job.whole[0], job.weight.learned_indices.flat
    terms = ((job.output, gradient), (job.input, input))
    gradient, input = (
        factor.index_select(letters.index(row), ids) if row in letters else factor for letters, factor in terms
    )
    return torch.einsum(f"{job.output},{job.input}->{job.whole}", gradient, input)


def _entries_gradient(job: _Job, gradient: Tensor, input: Tensor) -> Tensor:
    """Return the gradient of the learned entries of a matrix (I, J): each is a product of two columns."""
    i, j = job.whole[0], job.whole[1]
    terms = ((job.output, gradient), (job.input, input))
    (of_i, a), (of_j, b) = terms if i in job.output else reversed(terms)
    shared = of_i.replace(i, "")
    a = a.permute([of_i.index(letter) for letter in shared + i]).flatten(0, -2) if shared else a.unsqueeze(0)
    b = b.permute([of_j.index(letter) for letter in shared + j]).flatten(0, -2) if shared else b.unsqueeze(0)
    places = job.weight.learned_indices.places_in(job.weight.frozen)
    assert places is not None
    if torch.is_grad_enabled():
        return (a.T @ b).reshape(-1).index_select(0, places.starts)
    if a.dtype not in _SAMPLED:
        a, b = a.float(), b.float()
    zeros = a.new_zeros(len(places.starts))  # not empty: `beta=0.0` multiplies, and 0 * NaN is NaN
    pattern = _csr(*places.rows_and_columns, zeros, (a.shape[1], b.shape[1]))
    sampled: Tensor = torch.sparse.sampled_addmm(pattern, a.T.contiguous().resolve_conj(), b.resolve_conj(), beta=0.0)
    return sampled.values()


def _csr(*parts: Any) -> Tensor:
    _csr_has_warned()
    return torch.sparse_csr_tensor(*parts, check_invariants=False)


@functools.cache
def _csr_has_warned() -> None:
    """Let torch say once, to nobody, that such tensors are in beta state: no user asked for one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.tensor([0, 0]), [], [], (1, 1), check_invariants=False)


_SAMPLED = (torch.float32, torch.float64, torch.complex64, torch.complex128)
_CAST = {torch.float32, torch.float16, torch.bfloat16}  # what autocast casts


def _multiply(
    compute: Callable[..., Tensor],
    input: Any,
    tensor: Any,
    letters: tuple[str, str, str] | None,
    bias: Any = None,
) -> Any:
    """Return the product of `input` and `tensor`, given the letters of both and of the output; or NotImplemented."""
    others_are_plain = not (isinstance(input, MemoryTensor) or isinstance(bias, MemoryTensor))
    if letters is None or not (isinstance(input, Tensor) and others_are_plain):
        return NotImplemented
    whole = letters_of_whole(tensor, letters[1])
    if whole is None or not _pays(tensor.origin, input, *letters, whole):
        return NotImplemented
    weight: PartialTensor = tensor.origin
    sizes = {*zip(letters[0], input.shape, strict=True), *zip(letters[1], tensor.shape, strict=True)}
    if len(dict(sizes)) != len(sizes):  # it broadcasts, or the shapes do not fit
        return NotImplemented
    weight.sync()
    memory = memory_of(tensor)
    device = memory.device.type
    if torch.is_autocast_enabled(device):
        summed = any(size > 1 and letter in letters[0] and letter not in letters[2] for letter, size in sizes)
        if not summed or not {memory.dtype, input.dtype} <= _CAST:
            return NotImplemented  # `einsum` then multiplies elements, which autocast leaves as they are
        dtype = torch.get_autocast_dtype(device)
        input, memory, bias = input.to(dtype), memory.to(dtype), None if bias is None else bias.to(dtype)
    if isinstance(tensor, PartialView):
        tensor.passed_by = True
    job = _Job(compute, weight, version_of(weight.frozen), letters[0], letters[1], whole, letters[2])
    return _product(input, memory, bias, weight.learned, job)  # type: ignore[no-untyped-call]


def letters_of_whole(tensor: MemoryTensor, letters: str) -> str | None:
    """Return the letters of the weight's own dimensions, if `tensor` is the weight, or it with its dimensions permuted.

    None where a gradient must go another way.
    """
    weight: PartialTensor = tensor.origin
    if weight.stands_in or not (torch.is_grad_enabled() and weight.learned.requires_grad):
        return None
    if not may_use_functions() or weight.is_meta or weight.learned_indices.places_in(weight.frozen) is None:
        return None
    if tensor is weight:
        return letters
    if not has_own_gradient(tensor) or is_watched(tensor) or tensor.is_conj() or tensor.dtype != weight.dtype:
        return None
    if tensor.storage_offset() != weight.storage_offset():
        return None
    shown = dict(zip(zip(tensor.shape, tensor.stride(), strict=True), letters, strict=True))
    own = [shown.get(dim, "") for dim in zip(weight.shape, weight.stride(), strict=True)]
    return "".join(own) if all(own) and len(set(own)) == tensor.ndim else None


def _pays(weight: PartialTensor, input: Tensor, of_input: str, given: str, output: str, whole: str) -> bool:
    """Return whether the letters tell the gradient too, and it is less work than that of the whole weight."""
    terms = (of_input, given, output)
    told = all(len(set(term)) == len(term) for term in terms) and all(
        sum(letter in term for term in terms) > 1 for letter in set("".join(terms))
    )
    if not told or weight.learned_indices.kind == "rows":
        return told
    parts = len(whole) == 2 and all((letter in of_input) != (letter in output) for letter in whole)
    multiplications = weight.numel() * (input.numel() // max(1, input.shape[-1]))
    few = len(weight.learned_indices) <= _MOST_ENTRIES * weight.numel()
    return parts and (whole[0] in output) != (whole[1] in output) and few and multiplications >= _FEWEST_MULTIPLICATIONS


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """Multiply by the frozen part, then overwrite the columns of the R learned rows: (*, D) -> (*, V).

    Two products, and not one with the whole tensor, so that every process and compiler gets the same bits.
    """
    if not isinstance(weight, PartialTensor) or weight.ndim != 2 or isinstance(input, PartialTensor):
        return NotImplemented
    if weight.learned_indices.row_to_slot is None:
        if input.numel() * len(weight) < _FEWEST_MULTIPLICATIONS:
            return NotImplemented
        rest = "abcdefgh"[: input.ndim - 1]
        return _multiply(F.linear, input, weight, (f"{rest}j", "ij", f"{rest}i"), bias)
    if isinstance(bias, PartialTensor):
        bias = bias.merged()  # (V,): a compiler would lose the gradient of a bias passed on as it is
    if input.requires_grad:
        weight.sync()  # a NaN that was in a learned row would reach the gradient of the input: 0 * NaN is NaN
    weight.memory.check_in_use()
    ids = weight.learned_indices.flat
    out = F.linear(input, weight.frozen.detach(), bias)
    learned = weight.learned.to(weight.frozen.dtype)
    return out.index_copy(-1, ids, F.linear(input, learned, None if bias is None else bias[ids]))


def _matmul(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Any:
    """Return what `function` does: matmul, mm or bmm, of two tensors whose batch dimensions are the same."""
    if len(args) != 2 or kwargs or not all(isinstance(factor, Tensor) and factor.ndim for factor in args):
        return NotImplemented
    input, other = args
    batch = "abcdefgh"[: max(input.ndim, other.ndim, 2) - 2]
    left = batch[len(batch) - max(0, input.ndim - 2) :] + "ik"[-input.ndim :]
    right = batch[len(batch) - max(0, other.ndim - 2) :] + ("kj" if other.ndim > 1 else "k")
    output = batch + "i" * (input.ndim > 1) + "j" * (other.ndim > 1)
    if isinstance(other, MemoryTensor):
        return _multiply(lambda a, b, _: function(a, b), input, other, (left, right, output))
    return _multiply(lambda a, b, _: function(b, a), other, input, (right, left, output))


def _addmm(*args: Any, **kwargs: Any) -> Any:
    """Return what `torch.addmm` does, as GPT-2's linear layers call it: a bias, and a weight on the right."""
    if len(args) != 3 or kwargs or not all(isinstance(factor, Tensor) and factor.ndim == 2 for factor in args[1:]):
        return NotImplemented
    bias, left, right = args
    if not isinstance(bias, Tensor) or not isinstance(right, MemoryTensor):
        return NotImplemented
    return _multiply(lambda a, b, bias: torch.addmm(bias, a, b), left, right, ("ak", "kj", "aj"), bias)


def einsum(equation: Any, *operands: Any) -> Any:
    """Return what `torch.einsum` does, for two tensors and an equation that names its output."""
    operands = tuple(operands[0]) if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
    if not isinstance(equation, str) or len(operands) != 2 or equation.count("->") != 1 or "." in equation:
        return NotImplemented
    terms, output = equation.replace(" ", "").split("->")
    left, right = terms.split(",")
    if not all(isinstance(factor, Tensor) for factor in operands) or not (
        len(left) == operands[0].ndim and len(right) == operands[1].ndim
    ):
        return NotImplemented
    if isinstance(operands[1], MemoryTensor):
        return _multiply(lambda a, b, _: torch.einsum(equation, a, b), *operands, (left, right, output))
    return _multiply(lambda a, b, _: torch.einsum(equation, b, a), *operands[::-1], (right, left, output))


_products: dict[Callable[..., Any], Callable[..., Any]] = {
    F.linear: linear,
    torch.einsum: einsum,
    **dict.fromkeys((torch.addmm, Tensor.addmm), _addmm),
}
for _name in ("matmul", "mm", "bmm"):
    _function = getattr(torch, _name)
    _products |= dict.fromkeys((_function, getattr(Tensor, _name)), functools.partial(_matmul, _function))
_products[Tensor.__matmul__] = functools.partial(_matmul, torch.matmul)
OVERRIDES.update(_products)
del _products[F.linear]
VIEW_OVERRIDES.update(_products)
