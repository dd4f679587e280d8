"""A partial tensor beside a plain one with the same values, and the same use of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import frostline as fl

V, D = 128, 96  # large enough that the gradient of entries is computed of them alone
UNSORTED = [100, 5, 3]
ENTRIES = torch.arange(V * D).view(V, D) % 53 == 7
SELECTIONS = {
    "rows in any order": lambda: fl.rows(UNSORTED),
    "a block of rows": lambda: fl.rows([4, 5, 6]),
    "one row": lambda: fl.rows([5]),
    "all rows": lambda: fl.rows(range(V)),
    "entries": lambda: fl.entries(ENTRIES),
}
EACH_SELECTION = pytest.mark.parametrize("select", SELECTIONS.values(), ids=SELECTIONS.keys())
ROWS_AND_ENTRIES = pytest.mark.parametrize("select", [SELECTIONS["rows in any order"], SELECTIONS["entries"]])
# (rtol, atol): the same sums in another order
CLOSE = {
    torch.float64: (1e-9, 1e-9),
    torch.float32: (1e-4, 1e-4),
    torch.bfloat16: (2e-2, 3e-1),
    torch.complex64: (1e-4, 1e-3),
}
EACH_DTYPE = pytest.mark.parametrize("dtype", CLOSE, ids=str)


class Pair:
    """A module with a partial `weight`, and `plain`, the same values as an ordinary leaf."""

    def __init__(self, selection: Any, shape: tuple[int, ...] = (V, D), dtype: torch.dtype = torch.float64) -> None:
        torch.manual_seed(0)
        self.module = nn.Module()
        self.module.weight = nn.Parameter(torch.randn(shape, dtype=torch.float64).to(dtype))
        self.plain = self.module.weight.detach().clone().requires_grad_()
        fl.train_only(self.module, {"weight": selection})
        self.dtype = dtype
        self.indices = self.module._frostline.partial["weight"].indices.index

    @property
    def weight(self) -> Any:
        return self.module.weight

    @property
    def learned(self) -> Tensor:
        return self.module.weight_learned

    def both(self) -> tuple[tuple[Any, Tensor], tuple[Any, Tensor]]:
        """The weight and the leaf that gets its gradient: of the partial tensor, and of the plain one."""
        return (self.weight, self.learned), (self.plain, self.plain)

    def masked(self, dense: Tensor) -> Tensor:
        """Return what the learned part should get of the gradient of the plain tensor."""
        return dense[self.indices].view(self.learned.shape)

    def check(self, use: Callable[[Any], Tensor], moves: bool = True) -> None:
        """Check that both give the same bits, and what learns the masked gradient; `moves`: one that is not zero."""
        mine, theirs = use(self.weight), use(self.plain)
        assert type(mine) is Tensor
        assert torch.equal(mine, theirs)
        upstream = torch.randn(theirs.shape, dtype=torch.float64).to(theirs.dtype)
        (mine_grad,) = torch.autograd.grad(mine, self.learned, upstream)
        (dense,) = torch.autograd.grad(theirs, self.plain, upstream)
        wanted = self.masked(dense)
        assert bool(wanted.abs().sum() > 0) == moves
        self.close(mine_grad, wanted)

    def close(self, mine: Tensor, wanted: Tensor) -> None:
        rtol, atol = CLOSE[self.dtype]
        torch.testing.assert_close(mine, wanted, rtol=rtol, atol=atol)
