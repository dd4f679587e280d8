"""Train only rows 0 and 3 of a table of ten rows.

Run:  python examples/only_these_rows.py

A step of SGD after a lookup of rows 0 and 3 changes only these two. That looks as if the others were frozen, but they
are not: their gradient is zero, and an optimizer with decay or momentum still moves them. With `fl.rows([0, 3])` the
optimizer never sees the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

import frostline as fl
from frostline.partial.selections import Selection

IDS = torch.tensor([0, 3])
Maker = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Maker] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1),
}


def train(make: Maker, learns: Selection, steps: int) -> tuple[Tensor, Tensor]:
    """Return the table before and after `steps` steps in which only rows 0 and 3 are looked up."""
    torch.manual_seed(0)
    table, target = nn.Embedding(10, 3), torch.randn(2, 3)
    before = table.weight.detach().clone()
    optimizer = make(fl.train_only(table, {"weight": learns}).parameters())
    for _ in range(steps):
        loss = (table(IDS).tanh() - target).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return before, table.weight.detach().clone()


def changed(before: Tensor, after: Tensor) -> list[int]:
    """Return the rows in which any bit differs."""
    rows: list[int] = (before != after).any(dim=1).nonzero().flatten().tolist()
    return rows


def main() -> None:
    """Run it and print what it shows."""
    before, after = train(OPTIMIZERS["SGD"], fl.rows([0, 3]), steps=1)
    print("the table after one step of SGD, change in brackets")
    for row, (old, new) in enumerate(zip(before, after, strict=True)):
        change = "" if torch.equal(old, new) else f"  ({', '.join(f'{n:+.4f}' for n in (new - old).tolist())})"
        print(f"  row {row}  {'  '.join(f'{n:7.4f}' for n in new.tolist())}{change}")
    for name, make in OPTIMIZERS.items():
        for title, learns in {"everything": fl.everything, "rows([0, 3])": fl.rows([0, 3])}.items():
            rows = changed(*train(make, learns, steps=20))
            print(f"{name:5s} learns {title:12s} rows changed after 20 steps: {rows}")


if __name__ == "__main__":
    main()
