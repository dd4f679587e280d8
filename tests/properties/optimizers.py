"""What a case is trained with: all of torch.optim, the row optimizers, and well-maintained ones of others.

Learning rates are large, so that a step moves numbers in bfloat16 too. `decay` and `momentum` go where an optimizer has
them; `kernel` is torch's choice of implementation: "default", "loop", "foreach", "fused"
or "compiled" (by torch.compile).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_optimizer
import schedulefree
import torch
from torch import nn

import frostline as fl

Make = Callable[[list[nn.Parameter], float, float, dict[str, bool]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Family:
    """One optimizer.

    Attributes:
        make: (parameters, decay, momentum, options for the kernel) -> optimizer.
        kernels: The implementations that it has.
        whole: Whether it looks at a tensor as a whole, so that the learned part alone gives other steps than that.
        sparse: Whether it takes sparse gradients; "only": nothing else.
        matrices: Whether it takes tensors of two dimensions only.
        closure: Whether its step evaluates the loss itself.
        float16: Whether what it divides by stays above 0 in float16.
        kept: How many numbers it keeps for each number that learns, at most.
    """

    make: Make
    kernels: tuple[str, ...] = ("default",)
    whole: bool = False
    sparse: str = ""
    matrices: bool = False
    closure: bool = False
    float16: bool = True
    kept: int = 3


KERNELS: dict[str, dict[str, bool]] = {
    "default": {},
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "compiled": {},
}
EPS = 1e-4  # what is usual, 1e-8, is 0 in float16, where a gradient of 0 then gives NaN: plain tensors as well
_EACH, _FUSED = ("default", "loop", "foreach"), ("default", "loop", "foreach", "fused", "fused")


def _betas(momentum: float) -> tuple[float, float]:
    return (momentum, 0.95)


def _adam(cls: Any, lr: float = 0.05, **options: Any) -> Make:
    return lambda p, decay, momentum, kernel: cls(
        p, lr=lr, betas=_betas(momentum), eps=EPS, weight_decay=decay, **options, **kernel
    )


def _plain(cls: Any, lr: float, **options: Any) -> Make:
    return lambda p, decay, momentum, kernel: cls(p, lr=lr, weight_decay=decay, **options, **kernel)


def _sgd(p: list[nn.Parameter], decay: float, momentum: float, kernel: dict[str, bool]) -> torch.optim.Optimizer:
    nesterov = momentum > 0.8
    return torch.optim.SGD(p, lr=0.1, weight_decay=decay, momentum=momentum, nesterov=nesterov, **kernel)


def _rmsprop(p: list[nn.Parameter], decay: float, momentum: float, kernel: dict[str, bool]) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(p, lr=0.05, weight_decay=decay, momentum=momentum, eps=EPS, **kernel)


def _muon(p: list[nn.Parameter], decay: float, momentum: float, kernel: dict[str, bool]) -> torch.optim.Optimizer:
    return torch.optim.Muon(p, lr=0.05, weight_decay=decay, momentum=momentum)


def _lbfgs(p: list[nn.Parameter], decay: float, momentum: float, kernel: dict[str, bool]) -> torch.optim.Optimizer:
    search = "strong_wolfe" if momentum > 0.8 else None
    return torch.optim.LBFGS(p, lr=0.02, max_iter=3, history_size=2, line_search_fn=search)


def _row_sgd(p: list[nn.Parameter], decay: float, momentum: float, kernel: dict[str, bool]) -> torch.optim.Optimizer:
    return fl.optim.RowSGD(p, lr=0.1, weight_decay=decay, momentum=momentum)


FAMILIES: dict[str, Family] = {
    "SGD": Family(_sgd, _FUSED, sparse="also"),
    "ASGD": Family(_plain(torch.optim.ASGD, 0.1), _EACH),
    "Adagrad": Family(_plain(torch.optim.Adagrad, 0.1, eps=EPS), _FUSED, sparse="also"),
    "Adadelta": Family(_plain(torch.optim.Adadelta, 1.0, rho=0.5, eps=EPS), _EACH),
    "Adam": Family(_adam(torch.optim.Adam), _FUSED),
    "AdamW": Family(_adam(torch.optim.AdamW), _FUSED),
    "AdamW, amsgrad": Family(_adam(torch.optim.AdamW, amsgrad=True), _FUSED),
    "Adamax": Family(_adam(torch.optim.Adamax), _EACH),
    "NAdam": Family(_adam(torch.optim.NAdam), _EACH),
    "RAdam": Family(_adam(torch.optim.RAdam), _EACH),
    "RMSprop": Family(_rmsprop, _EACH),
    "Rprop": Family(lambda p, decay, momentum, kernel: torch.optim.Rprop(p, lr=0.05, **kernel), _EACH),
    "SparseAdam": Family(lambda p, decay, momentum, kernel: torch.optim.SparseAdam(p, lr=0.05), sparse="only"),
    "LBFGS": Family(_lbfgs, whole=True, closure=True, float16=False, kept=12),
    "Adafactor": Family(_plain(torch.optim.Adafactor, 0.05), _EACH, whole=True, float16=False),
    "Muon": Family(_muon, whole=True, matrices=True),
    "RowSGD": Family(_row_sgd, sparse="also"),
    "RowAdagrad": Family(
        lambda p, decay, momentum, _: fl.optim.RowAdagrad(p, lr=0.1, eps=EPS, weight_decay=decay), sparse="also"
    ),
    "RowAdagrad, a sum a row": Family(
        lambda p, decay, momentum, _: fl.optim.RowAdagrad(p, lr=0.1, eps=EPS, weight_decay=decay, rowwise=True),
        whole=True,
        sparse="also",
    ),
    "RowAdamW": Family(_adam(fl.optim.RowAdamW), sparse="also", kept=4),
    "schedulefree AdamW": Family(_adam(schedulefree.AdamWScheduleFree), ("loop", "foreach")),
    "schedulefree SGD": Family(
        lambda p, decay, momentum, kernel: schedulefree.SGDScheduleFree(
            p, lr=0.1, weight_decay=decay, momentum=0.9, **kernel
        ),
        ("loop", "foreach"),
    ),
    "pytorch_optimizer Lion": Family(
        lambda p, decay, momentum, _: pytorch_optimizer.Lion(p, lr=0.05, betas=_betas(momentum), weight_decay=decay)
    ),
    "pytorch_optimizer AdaBelief": Family(_adam(pytorch_optimizer.AdaBelief)),
    "pytorch_optimizer Lamb": Family(_adam(pytorch_optimizer.Lamb), whole=True),
}
