"""Under torch.compile, does a step in which some rows learn cost more than one with a frozen table?

One forward + backward + optimizer step of a small Llama-shaped model, compiled as one graph (`fullgraph=True`,
inductor). Its table of V rows is tied: embedding and head. The norms always learn; of the table
    frozen    no row learns                       (the floor)
    few       16 rows learn
    1 %       one row of a hundred learns
The same for a lookup with a small linear layer, which does little else: the case that loses.
First compiled and eager losses must agree, and frozen rows must keep every bit; then the models take turns.

Run:    python benchmarks/compiled_step.py [--quick]      (needs a C++ compiler; some minutes)
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # idle threads do not spin: other processes may need the core

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import frostline as fl

LAYERS, HEADS, FEW = 2, 8, 16


class Block(nn.Module):
    """Attention and a gated product, each after a norm and beside a residual: (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        query, key, value = self.qkv(self.norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)  # (B, heads, T, d)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        gate, up = self.up(self.norm2(x)).chunk(2, -1)
        out: Tensor = x + self.down(F.silu(gate) * up)
        return out


class Language(nn.Module):
    """A decoder with a tied head: ids (B, T) -> mean loss of the next tokens."""

    batch = (2, 64)  # B, T

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(rows, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(LAYERS)))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, rows, bias=False)
        self.head.weight = self.embed.weight
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up, run the blocks, predict."""
        logits = self.head(self.norm(self.blocks(self.embed(ids))))
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


class Lookup(nn.Module):
    """A table and a layer that always learns: ids (B, T) -> loss."""

    batch = (1, 2048)

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(rows, width), nn.RMSNorm(width), nn.Linear(width, 20)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up and classify."""
        return F.cross_entropy(self.head(self.norm(self.embed(ids))).flatten(0, 1), ids.flatten() % 20)


Model = Language | Lookup


@dataclass
class Way:
    """A model, its rows that learn (None: no row), its optimizer and the measured times."""

    rows: Tensor | None
    model: Model
    loss_of: Callable[[Tensor], Tensor] = field(init=False)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        chosen = fl.nothing if self.rows is None else fl.rows(self.rows)
        plan = fl.train_only(self.model, {"*norm*": fl.everything, "embed.weight": chosen})
        self.optimizer = torch.optim.AdamW(plan.parameters(), lr=1e-3, weight_decay=0.1)
        self.loss_of = torch.compile(self.model, fullgraph=True)

    def step(self, ids: Tensor) -> float:
        """Do one step; return the loss."""
        self.optimizer.zero_grad()
        loss = self.loss_of(ids)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def choices(rows: int) -> dict[str, Tensor | None]:
    """Return the rows that learn in each way, for a table of `rows` rows."""
    shuffled = torch.randperm(rows, generator=torch.Generator().manual_seed(1))
    return {"frozen": None, "few": shuffled[:FEW], "1 %": shuffled[: rows // 100]}


def ways_of(kind: type[Model], rows: int, width: int) -> dict[str, Way]:
    """Return the ways, with equal models."""
    ways = {}
    for name, learn in choices(rows).items():
        torch.manual_seed(0)
        ways[name] = Way(learn, kind(rows, width))
    return ways


def batches(rows: int, shape: tuple[int, int], count: int) -> list[Tensor]:
    """Return batches of ids (B, T), a tenth of them among the few that learn, so that these are used."""
    few = choices(rows)["few"]
    assert few is not None
    generator = torch.Generator().manual_seed(2)
    made = []
    for _ in range(count):
        ids = torch.randint(rows, shape, generator=generator)
        ids[:, ::10] = few[torch.randint(len(few), ids[:, ::10].shape, generator=generator)]
        made.append(ids)
    return made


def check(rows: int = 2_000, width: int = 64) -> None:
    """Prove on a small table that compiled and eager steps agree and that frozen rows keep every bit."""
    eagers = ways_of(Language, rows, width)
    before = eagers["frozen"].model.embed.weight.detach().clone()
    for name, way in ways_of(Language, rows, width).items():
        eager, learn = eagers[name], way.rows
        eager.loss_of = eager.model
        for ids in batches(rows, Language.batch, 3):
            compiled_loss, eager_loss = way.step(ids), eager.step(ids)
            assert abs(compiled_loss - eager_loss) < 1e-3, f"{name}: {compiled_loss} compiled, {eager_loss} eager"
        after = way.model.embed.weight.detach().clone()
        learns = torch.zeros(len(after), dtype=torch.bool)
        if learn is not None:
            learns[learn] = True
        assert torch.equal(after[~learns], before[~learns]), f"{name}: frozen rows moved"
        assert bool((after[learns] != before[learns]).all()), f"{name}: rows that learn did not move"


def measure(kind: type[Model], rows: int, width: int, rounds: int) -> dict[str, Way]:
    """Time the ways in turns."""
    torch._dynamo.reset()
    ways = ways_of(kind, rows, width)
    made = batches(rows, kind.batch, 8)
    for turn in range(rounds + 3):
        for way in ways.values():
            start = time.perf_counter()
            way.step(made[turn % len(made)])
            if turn >= 3:  # the first ones compile, make state and warm up
                way.seconds.append(time.perf_counter() - start)
    return ways


def table_of(ways: dict[str, Way]) -> str:
    """Return the figures as a Markdown table."""
    floor = statistics.median(ways["frozen"].seconds)
    lines = ["| way | ms a step: median (least - most) | x frozen |", "| --- | --: | --: |"]
    for name, way in ways.items():
        least, middle, most = (1e3 * f(way.seconds) for f in (min, statistics.median, max))
        lines.append(f"| {name} | {middle:,.2f} ({least:,.1f} - {most:,.1f}) | {middle / 1e3 / floor:.2f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Prove that compiled steps are right, time them, print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a small table and few rounds: does it run?")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    check()
    print(f"All agree. {args.threads} thread(s), torch {torch.__version__}, inductor.")
    sizes: list[tuple[type[Model], int, int, int]] = [
        (Language, 32_000, 512, args.rounds),
        (Language, 128_256, 512, args.rounds),
        (Lookup, 100_000, 100, 20 * args.rounds),
    ]
    for kind, rows, width, rounds in [(Language, 2_000, 64, 3)] if args.quick else sizes:
        ids = math.prod(kind.batch)
        print(f"\n### {kind.__name__}, V = {rows:,}, D = {width}, {ids:,} ids a step\n", flush=True)
        print(table_of(measure(kind, rows, width, rounds)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
