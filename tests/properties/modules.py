"""What is trained: small modules of every kind, their input, and what torch itself can do with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
    """

    build: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Tensor]
    learns_by_linear: tuple[str, ...] = ()
    sparse: bool = False
    reordered: bool = False
    twice: bool = True
    whole: bool = True


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
        lambda: nn.EmbeddingBag(V, D, **options), _ids, sparse=bool(options.get("sparse")), reordered=True, twice=False
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
}
