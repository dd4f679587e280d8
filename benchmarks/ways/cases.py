"""Models of which some entries or rows learn: a language model, experts, convolutions, lookups, uses of a table.

The forward of each takes a batch and returns the loss. What is not among the `parts` and requires a gradient always
learns, so that the gradient goes back through the whole model even where nothing of the parts learns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import frostline as fl

Optimizers = Callable[[list[nn.Parameter], list[nn.Parameter]], list[Optimizer]]


@dataclass(frozen=True)
class Case:
    """A model, what of it learns, and what is done with it.

    Attributes:
        make: Returns the model, the same every time.
        parts: Returns what learns: name -> bool mask, or ids of rows.
        batch: Number of a step -> the input of that step.
        optimizers: Returns the optimizers of what always learns and of the parts.
        linear_only: Whether the parts are entries of `nn.Linear` alone, so that SHiRA can take part.
        learns: Whether the steps use any of the parts.
        stepped: Whether the time of the optimizers counts; otherwise forward and backward.
        compiled: Whether the model is compiled.
    """

    make: Callable[[], nn.Module]
    parts: Callable[[nn.Module], dict[str, Tensor]]
    batch: Callable[[int], Tensor]
    optimizers: Optimizers
    linear_only: bool = False
    learns: bool = True
    stepped: bool = True
    compiled: bool = False


class Llama(nn.Module):
    """A Llama of transformers, of which the first and last norm always learn."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        self.llm: Any = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=width,
                intermediate_size=width * 11 // 4,
                num_hidden_layers=layers,
                num_attention_heads=width // 64,
                vocab_size=1000,
            )
        )
        norms = self.llm.model.layers[0].input_layernorm.weight, self.llm.model.norm.weight
        _only(self, *norms, *(m.weight for m in self.modules() if isinstance(m, nn.Linear)))

    def forward(self, ids: Tensor) -> Tensor:
        """Return the loss of predicting ids (1, n)."""
        loss: Tensor = self.llm(input_ids=ids, labels=ids).loss
        return loss


class Experts(nn.Module):
    """Experts (16, I, J) that are multiplied one by one, or together; a linear layer before them always learns."""

    def __init__(self, inner: int, outer: int, together: bool) -> None:
        super().__init__()
        self.before, self.w = nn.Linear(inner, inner), nn.Parameter(torch.randn(16, inner, outer) * 0.02)
        self.together = together

    def forward(self, x: Tensor) -> Tensor:
        """Return a loss of tokens (16, n, I)."""
        h, w = self.before(x), self.w
        y = torch.bmm(h, w) if self.together else torch.stack([h[k] @ w[k] for k in range(len(w))])
        return y.square().mean()


class Convolutions(nn.Module):
    """Four convolutions and a linear layer; the first bias always learns."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 64, 128, 128, 256)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.head = nn.Linear(widths[-1], 10)
        _only(self, self.convolutions[0].bias, *(m.weight for m in self.convolutions))

    def forward(self, images: Tensor) -> Tensor:
        """Return a loss of images (n, 3, H, W)."""
        for convolution in self.convolutions:
            images = F.relu(convolution(images))
        loss: Tensor = self.head(images.mean((2, 3))).square().mean()
        return loss


class Lookup(nn.Module):
    """A table and a linear layer, which always learns."""

    def __init__(self, rows: int, sparse: bool) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(rows, 100, sparse=sparse), nn.Linear(100, 20)

    def forward(self, ids: Tensor) -> Tensor:
        """Return a loss of ids (n,)."""
        return F.cross_entropy(self.head(self.table(ids)), ids % 20)


class Use(nn.Module):
    """A table that is used otherwise than by F.embedding, and a number that always learns."""

    def __init__(self, rows: int, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.w, self.scale, self.use = nn.Parameter(torch.randn(rows, 64)), nn.Parameter(torch.ones(())), use

    def forward(self, ids: Tensor) -> Tensor:
        """Return a loss of ids (n,)."""
        return self.use(self.w, ids).mean() * self.scale


def _only(model: nn.Module, *learns: Any) -> None:
    model.requires_grad_(False)
    for tensor in learns:
        tensor.requires_grad_(True)


def _entries(model: nn.Module, kind: type[nn.Module], share: float = 0.01) -> dict[str, Tensor]:
    """Draw entries of every layer of a kind; of a linear one as many as SHiRA can have, a multiple of its two sizes."""
    generator, masks = torch.Generator().manual_seed(1), {}
    for name, layer in model.named_modules():
        if isinstance(layer, kind):
            shape = model.get_parameter(f"{name}.weight").shape
            size = shape.numel()
            unit = sum(shape) if len(shape) == 2 else 1
            count = max(1, round(share * size / unit)) * unit
            chosen = torch.randperm(size, generator=generator)[:count]
            masks[f"{name}.weight"] = torch.zeros(size, dtype=torch.bool).index_fill(0, chosen, True).view(shape)
    return masks


def _all_by(kind: Callable[..., Optimizer], **options: float) -> Optimizers:
    return lambda always, parts: [kind([*always, *parts], **options)]


def _each_by(
    kind: Callable[..., Optimizer], rows: Callable[..., Optimizer], rate: float, **options: float
) -> Optimizers:
    return lambda always, parts: [kind(always, lr=rate), *([rows(parts, lr=rate, **options)] if parts else [])]


def _drawn(draw: Callable[[torch.Generator], Tensor]) -> Callable[[int], Tensor]:
    return lambda turn: draw(torch.Generator().manual_seed(turn % 16))


_X = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
USES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "w[5], which learns": lambda w, ids: w[5],
    "w[7], which does not": lambda w, ids: w[7],
    "w[ids]": lambda w, ids: w[ids],
    "w.index_select(0, ids)": lambda w, ids: w.index_select(0, ids),
    "x @ w.T": lambda w, ids: _X @ w.T,
    "w.view(V / 100, -1)": lambda w, ids: w.view(len(w) // 100, -1)[0],
}


def cases(quick: bool) -> dict[str, Case]:
    """Return the cases, all of them small if `quick`."""
    made: dict[str, Case] = {}
    adam = _all_by(AdamW, lr=1e-4, weight_decay=0.0)
    width, layers = (64, 1) if quick else (1024, 4)
    for count in (64, 512):
        made[f"1 % of every Linear of a Llama of {layers} x {width:,}, {count} tokens"] = Case(
            lambda: Llama(width, layers),
            lambda model: _entries(model, nn.Linear),
            _drawn(lambda g, n=count: torch.randint(1000, (1, n), generator=g)),  # type: ignore[misc]
            adam,
            linear_only=True,
        )
    inner, outer = (16, 32) if quick else (512, 1024)
    for together in (False, True):
        for count in (8, 64):
            made[f"one expert of (16, {inner}, {outer}), {'bmm' if together else 'w[k]'}, {count} tokens"] = Case(
                lambda together=together: Experts(inner, outer, together),  # type: ignore[misc]
                lambda model: {"w": torch.tensor([3])},
                _drawn(lambda g, n=count: torch.randn(16, n, inner, generator=g)),  # type: ignore[misc]
                _all_by(SGD, lr=1.0),
            )
    for side in (4, 8) if quick else (8, 32):
        made[f"1 % of four convolutions, 16 images of {side} x {side}"] = Case(
            Convolutions,
            lambda model: _entries(model, nn.Conv2d),
            _drawn(lambda g, n=side: torch.randn(16, 3, n, n, generator=g)),  # type: ignore[misc]
            _all_by(AdamW, lr=1e-3, weight_decay=0.0),
        )
    rows = 2_000 if quick else 400_000
    lookups: list[tuple[str, Optimizers, bool]] = [
        ("SGD, sparse", _each_by(SGD, SGD, 0.1), False),
        ("RowAdamW, sparse", _each_by(torch.optim.Adam, fl.optim.RowAdamW, 1e-3, weight_decay=0.0), False),
        ("SGD, compiled", _each_by(SGD, SGD, 0.1), True),
    ]
    for how, optimizers, compiled in lookups:
        made[f"lookups of 2,048 in {rows:,} x 100, 1 % of the rows, {how}"] = Case(
            lambda compiled=compiled: Lookup(rows, not compiled),  # type: ignore[misc]
            lambda model: {"table.weight": _some_rows(rows)},
            _drawn(lambda g: torch.randint(rows, (2048,), generator=g)),
            optimizers,
            compiled=compiled,
        )
    size = 1_000 if quick else 100_000
    for name, use in USES.items():
        made[f"{name}, 3 rows of {size:,} x 64, forward and backward"] = Case(
            lambda use=use: Use(size, use),  # type: ignore[misc]
            lambda model: {"w": torch.tensor([5, 50, 500])},
            _drawn(lambda g: torch.randint(size, (32,), generator=g).index_fill(0, torch.tensor(0), 5)),
            _all_by(SGD, lr=1.0),
            learns="not" not in name,
            stepped=False,
        )
    return made


def _some_rows(rows: int) -> Tensor:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(2))[: rows // 100]
