"""What is trained: small modules of every kind, their input, and what torch itself can do with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

V, D = 7, 4
PADDING = 2


@dataclass(frozen=True)
class Kind:
    """One kind of module.

    Attributes:
        build: Makes the module in float32; its weights are drawn anew.
        batch: Makes an input from a generator.
        learns_by_linear: Names of weights that `F.linear` gets: under rows their product is taken apart, so its sums
            are taken in another order than the dense product's.
        sparse: Whether rows have a sparse gradient.
        reordered: Whether sums are taken in another order when a tensor is frozen or partial: bags of looked-up rows;
            torch's attention, which has other ways for frozen weights.
        twice: Whether torch has its second derivative.
        whole: Whether torch's compiler takes it with `fullgraph=True`; it refuses recurrent modules.
        traced: Whether torch's compiler and exporter take it at all.
    """

    build: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Tensor]
    learns_by_linear: tuple[str, ...] = ()
    sparse: bool = False
    reordered: bool = False
    twice: bool = True
    whole: bool = True
    traced: bool = True


class Tied(nn.Module):
    """A language model's two ends: one table looks up and predicts."""

    def __init__(self, padding_idx: int | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, D, padding_idx=padding_idx)
        self.norm = nn.LayerNorm(D, eps=0.1)  # a padding row is 0: a smaller eps makes its slopes huge
        self.head = nn.Linear(D, V)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(torch.tanh(self.embed(ids))))


class Scaled(nn.Embedding):
    """A subclass of Embedding with a forward of its own, as in Gemma."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * D**0.5 + self.weight.mean()


class Own(nn.Module):
    """Parameters of three, one and no dimensions, used as a user might."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(3, 2, D))
        self.shift = nn.Parameter(torch.randn(3))
        self.gain = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.einsum("nd,kjd->nkj", x, self.mix)
        return torch.sin(mixed + self.shift[:, None]) * self.gain + self.mix[1].abs().sum()


class Indexed(nn.Module):
    """Experts, one matrix each, in a tensor of three dimensions: each input goes through one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(4, 3, D))

    def forward(self, x: Tensor) -> Tensor:
        one = torch.stack([torch.tanh(x[i] @ self.experts[i % 3].t()) for i in range(len(x))])
        return one + x @ self.experts[-1].t() + self.experts[1:3].mean(0)[:, 0]


class Batched(nn.Module):
    """Experts as a batch of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, D, 2))
        self.shift = nn.Parameter(torch.randn(3, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.bmm(x.expand(3, *x.shape), self.experts)
        return torch.baddbmm(self.shift, x.expand(3, *x.shape), self.experts) * torch.tanh(out)


class Summed(nn.Module):
    """Heads as an einsum has them."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.Parameter(torch.randn(3, D, 2))

    def forward(self, x: Tensor) -> Tensor:
        keys = torch.einsum("nd,hdk->hnk", x, self.heads)
        return torch.einsum("hnk,hmk->hnm", keys, keys.tanh()) + torch.einsum("hdk,hdk->h", self.heads, self.heads)[0]


class CrossEntropy(torch.autograd.Function):
    """Linear and cross-entropy in one, as libraries for language models have it: gradients are made in the forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        loss, to_x, to_weight = x.new_zeros(()), torch.empty_like(x), torch.zeros_like(weight)
        to_bias = torch.zeros_like(bias)
        for at in range(0, len(x), 2):  # chunks
            some, wanted = x[at : at + 2], targets[at : at + 2]
            logits = some @ weight.t() + bias
            loss += -logits.log_softmax(-1).gather(1, wanted[:, None]).sum()
            slope = logits.softmax(-1)
            slope[torch.arange(len(wanted)), wanted] -= 1
            to_x[at : at + 2] = slope @ weight
            to_weight += torch.mm(slope.t(), some)
            to_bias += slope.sum(0)
        ctx.save_for_backward(to_x, to_weight, to_bias)
        return loss

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        to_x, to_weight, to_bias = ctx.saved_tensors
        return slope * to_x, slope * to_weight, slope * to_bias, None


class Product(torch.autograd.Function):
    """A product that keeps the weight itself, and asks which gradients are wanted."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.mm(x, weight.data.t())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return slope @ weight if wanted[0] else None, torch.mm(slope.t(), x) if wanted[1] else None


class FusedLoss(nn.Module):
    """Ends in a function of somebody else's that takes the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(D, D)
        self.head = nn.Linear(D, V)

    def forward(self, x: Tensor) -> Tensor:
        targets = torch.arange(len(x), device=x.device) % V
        with torch.autocast(x.device.type, enabled=False):
            return CrossEntropy.apply(self.inner(x), self.head.weight, self.head.bias, targets)


class FusedProducts(nn.Module):
    """A table whose products are a function of somebody else's."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Embedding(5, D)
        self.second = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return Product.apply(torch.tanh(Product.apply(x, self.first.weight)), self.second.weight) + self.second.bias


class Hooked(nn.Module):
    """Its forward puts hooks on views of its weight, and keeps their gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, D))
        self.views: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        across, row, flat = self.weight.t(), self.weight[1], self.weight.view(-1)
        if across.requires_grad:
            across.register_hook(lambda gradient: gradient * 2)
            row.register_hook(lambda gradient: gradient * -1)
            for view in (across, row, flat):
                view.retain_grad()
            self.views[:] = [across, row, flat]
        return torch.tanh(x @ across) + (x * row).sum(-1, keepdim=True) * 0.5 + (flat * flat).mean()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"views": []}  # tensors of a graph cannot be copied


class Cells(nn.Module):
    """Recurrent cells, one step at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LSTMCell(3, 2), nn.GRUCell(2, 2)
        self.third = nn.RNNCell(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        out = after = x.new_zeros(x.shape[1], 2)
        for each in x:
            state = self.first(each, state)
            out = self.second(state[0], out)
            after = self.third(out, after)
        return out + after


class Norms(nn.Module):
    """Weights of one dimension, and a product of three."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Bilinear(D, D, 4)
        self.layer, self.group, self.slope = nn.LayerNorm(4, eps=0.1), nn.GroupNorm(2, 4, eps=0.1), nn.PReLU(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.slope(self.group(self.layer(self.inner(x, torch.tanh(x)))))


class First(nn.Module):
    """The output of a module that returns its state as well."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(D, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, x, x, need_weights=False)[0]


def _ids(generator: torch.Generator) -> Tensor:
    return torch.randint(V, (3, 4), generator=generator)


def _numbers(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randn(shape, generator=generator)


def _lookup(**options: object) -> Kind:
    return Kind(lambda: nn.Embedding(V, D, **options), _ids, sparse=bool(options.get("sparse")))


def _bag(**options: object) -> Kind:
    return Kind(
        lambda: nn.EmbeddingBag(V, D, **options),
        _ids,
        sparse=bool(options.get("sparse")),
        reordered=True,
        twice=False,
    )


KINDS: dict[str, Kind] = {
    "embedding": _lookup(),
    "embedding, padded": _lookup(padding_idx=PADDING),
    "embedding, sparse": _lookup(sparse=True),
    "embedding, by frequency": _lookup(scale_grad_by_freq=True),
    "bag of sums": _bag(mode="sum"),
    "bag of means, padded": _bag(mode="mean", padding_idx=PADDING),
    "bag of maxima": _bag(mode="max"),
    "bag of sums, sparse": _bag(mode="sum", sparse=True),
    "linear": Kind(lambda: nn.Linear(D, 5), _numbers(3, D), ("weight",)),
    "linear, no bias": Kind(lambda: nn.Linear(D, 5, bias=False), _numbers(2, 3, D), ("weight",)),
    "convolution 1d": Kind(lambda: nn.Conv1d(2, 3, 3), _numbers(2, 2, 5)),
    "convolution 2d": Kind(lambda: nn.Conv2d(2, 4, 2, groups=2), _numbers(2, 2, 4, 4)),
    "convolution, transposed": Kind(lambda: nn.ConvTranspose1d(3, 2, 2), _numbers(2, 3, 4)),
    "lstm": Kind(lambda: First(nn.LSTM(3, 2, bidirectional=True)), _numbers(3, 2, 3), whole=False),
    "gru": Kind(lambda: First(nn.GRU(3, 2, num_layers=2)), _numbers(3, 2, 3), whole=False),
    "tied head": Kind(Tied, _ids, ("embed.weight",)),
    "tied head, padded": Kind(lambda: Tied(PADDING), _ids, ("embed.weight",)),
    "attention": Kind(Attention, _numbers(2, 3, D), reordered=True, twice=False),
    "own forward": Kind(Own, _numbers(4, D)),
    "own lookup": Kind(lambda: Scaled(V, D), _ids),
    "convolution 3d": Kind(lambda: nn.Conv3d(1, 2, 2, padding=1, padding_mode="circular"), _numbers(1, 1, 2, 3, 2)),
    "rnn": Kind(lambda: First(nn.RNN(3, 2, bias=False)), _numbers(3, 2, 3), whole=False),
    "cells": Kind(Cells, _numbers(3, 2, 3), reordered=True),
    "norms": Kind(Norms, _numbers(3, D), reordered=True),
    "experts, by index": Kind(Indexed, _numbers(4, D), reordered=True),
    "experts, batched": Kind(Batched, _numbers(3, D)),
    "heads, summed": Kind(Summed, _numbers(3, D)),
    "fused loss": Kind(FusedLoss, _numbers(4, D), ("inner.weight",), twice=False, traced=False),
    "fused products": Kind(FusedProducts, _numbers(3, D), twice=False, traced=False),
    "hooked views": Kind(Hooked, _numbers(3, D), reordered=True, twice=False, traced=False),
}
