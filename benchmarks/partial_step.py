"""Does a step with a partial table cost more than one with a frozen table?

Compares one forward + backward + optimizer step of a small model over a table of V rows, of which some learn:
    frozen      no row of the table learns                              (the floor)
    partial     fl.rows, dense gradient of the rows that learn
    sparse      fl.rows, nn.Embedding(sparse=True): only the rows that a step used
    hook        weight.register_hook(lambda g: g * mask)
    mask+stop   mask * E + stop_gradient((1 - mask) * E)
    two tables  torch.cat([frozen rows, learned rows]), ids renumbered
    restore     everything steps, then the frozen rows are written back
    peft        PEFT trainable tokens
First all must agree; then they take turns, so that a slow moment affects all of them, and so that each finds the caches
as the others left them (`--only partial sparse` for warm ones). If V is so large that they do not fit into memory
together, and to measure memory, each runs in its own process, with warm caches.

Run:    python benchmarks/partial_step.py [--quick]      (memory is measured on Linux only)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # idle threads do not spin: other processes may need the core

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import frostline as fl
from ways import WAYS, Way, frozen, frozen_rows, hook

D, IDS, TAGS = 100, 2048, 20
TOGETHER = 1_000_000  # up to this V all variants fit into memory at once
MOVED_BY_DECAY = {"hook", "mask+stop"}


class Trainer:
    """A table, a linear layer that always learns, and their optimizers."""

    def __init__(self, way: Way, optimizer: str, decay: float = 0.0) -> None:
        torch.manual_seed(0)
        self.way, self.head = way, nn.Linear(D, TAGS)
        head, table = [*self.head.parameters()], way.learns
        if optimizer == "adam" and way.sparse:
            self.optimizers: list[torch.optim.Optimizer] = [
                torch.optim.Adam(head, lr=1e-3),
                fl.optim.RowAdamW(table, lr=1e-3, weight_decay=0.0),
            ]
        elif optimizer == "adam":
            self.optimizers = [torch.optim.Adam([*head, *table], lr=1e-3)]
        elif way.sparse:  # torch's SGD takes a sparse gradient, but not together with decay
            self.optimizers = [torch.optim.SGD(head, lr=0.1, weight_decay=decay), torch.optim.SGD(table, lr=0.1)]
        else:
            self.optimizers = [torch.optim.SGD([*head, *table], lr=0.1, weight_decay=decay)]

    def step(self, ids: Tensor, tags: Tensor) -> None:
        """Do one forward, backward and optimizer step; ids and tags (n,)."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        F.cross_entropy(self.head(self.way.look_up(ids)), tags).backward()
        for optimizer in self.optimizers:
            optimizer.step()
        self.way.after()

    def state_elements(self) -> int:
        """Return how many elements of optimizer state the table has."""
        states = [optimizer.state[p] for optimizer in self.optimizers for p in self.way.learns if p in optimizer.state]
        return sum(t.numel() for state in states for t in state.values() if isinstance(t, Tensor) and t.ndim > 0)


def make_table(size: int) -> Tensor:
    """Return the table (size, D), the same every time."""
    return torch.randn(size, D, generator=torch.Generator().manual_seed(1))


def make_rows(size: int, share: float) -> Tensor:
    """Return the rows that learn, spread over the table."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(2))[: int(size * share)].sort().values


def make_batches(size: int, count: int = 16) -> list[tuple[Tensor, Tensor]]:
    """Return batches of ids, uniform over the table, and tags."""
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randint(size, (IDS,), generator=generator), torch.randint(TAGS, (IDS,), generator=generator))
        for _ in range(count)
    ]


@dataclass
class Figures:
    """The measurements of one way."""

    seconds: list[float] = field(default_factory=list)
    state_elements: int = 0
    extra_memory: float | None = None  # peak memory in addition to the table, MB


def check(names: Sequence[str]) -> dict[str, float]:
    """Prove that all ways learn the same; return the share of frozen rows that decay moves in each."""
    size, share = 1000, 0.1
    table, rows, moved = make_table(size), make_rows(size, share), {}
    frozen_ids = frozen_rows(table, rows)
    expected = _trained(hook, table, rows, decay=0.0)
    assert (expected[rows] != table[rows]).any(dim=1).float().mean() > 0.9, "the learned rows did not move"
    for name in names:
        plain, decayed = (_trained(WAYS[name], table, rows, decay) for decay in (0.0, 0.1))
        if name != "frozen":
            torch.testing.assert_close(plain[rows], expected[rows], atol=1e-6, rtol=1e-5)
        assert torch.equal(plain[frozen_ids], table[frozen_ids]), f"{name}: frozen rows moved without decay"
        moved[name] = (decayed[frozen_ids] != table[frozen_ids]).any(dim=1).float().mean().item()
        assert moved[name] == 0 or name in MOVED_BY_DECAY, f"{name}: frozen rows moved under decay"
    return moved


def _trained(make: Callable[[Tensor, Tensor], Way], table: Tensor, rows: Tensor, decay: float) -> Tensor:
    trainer = Trainer(make(table.clone(), rows), "sgd", decay)
    for ids, tags in make_batches(len(table), 5):
        trainer.step(ids, tags)
    return trainer.way.read().detach().clone()


def run_together(names: Sequence[str], size: int, share: float, optimizer: str, rounds: int) -> dict[str, Figures]:
    """Time the ways in turns, each over its own table."""
    rows, batches = make_rows(size, share), make_batches(size)
    trainers = {name: Trainer(WAYS[name](make_table(size), rows), optimizer) for name in names}
    figures = {name: Figures() for name in names}
    for turn in range(rounds + 2):
        for name, trainer in trainers.items():
            seconds = _steps(trainer, batches, turn)
            if turn >= 2:  # the first two make optimizer state and warm up
                figures[name].seconds.append(seconds)
    for name, trainer in trainers.items():
        figures[name].state_elements = trainer.state_elements()
    return figures


def _steps(trainer: Trainer, batches: Sequence[tuple[Tensor, Tensor]], turn: int) -> float:
    """Do one step; return its seconds."""
    ids, tags = batches[turn % len(batches)]
    start = time.perf_counter()
    trainer.step(ids, tags)
    return time.perf_counter() - start


def run_alone(name: str, size: int, share: float, optimizer: str, rounds: int) -> Figures:
    """Return time and peak memory of one way, measured in its own process."""
    command = [sys.executable, __file__, "--alone", name, str(size), str(share), optimizer, str(rounds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Figures(**json.loads(done.stdout))


def _alone(name: str, size: int, share: float, optimizer: str, rounds: int) -> None:
    """Print the figures as JSON: the process that `run_alone` starts."""
    rows = make_rows(size, share)
    Trainer(frozen(make_table(100), rows[:0]), optimizer).step(*make_batches(100)[0])  # so that libraries are loaded
    before = _memory("VmRSS") + size * D * 4 / 2**20
    trainer, batches = Trainer(WAYS[name](make_table(size), rows), optimizer), make_batches(size)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    for turn in range(2):
        _steps(trainer, batches, turn)
    seconds: list[float] = []
    while len(seconds) < rounds or (sum(seconds) < 1 and len(seconds) < 200):  # quick steps need more of them
        seconds.append(_steps(trainer, batches, len(seconds)))
    extra_memory = _memory("VmHWM") - before
    print(json.dumps({"seconds": seconds, "state_elements": trainer.state_elements(), "extra_memory": extra_memory}))


def _memory(line_name: str) -> float:
    """Return a line of Linux's /proc/self/status, in MB."""
    lines = Path("/proc/self/status").read_text().split("\n")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(line_name))


def table_of(figures: dict[str, Figures], moved: dict[str, float]) -> str:
    """Return the figures as a Markdown table."""
    floor = statistics.median(figures["frozen"].seconds)
    lines = [
        "| way | ms a step: median (least - most) | x frozen | optimizer state | MB beyond the table | decay moves |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for name, measured in figures.items():
        least, middle, most = (1e3 * f(measured.seconds) for f in (min, statistics.median, max))
        extra = "-" if measured.extra_memory is None else f"{max(0.0, measured.extra_memory):,.0f}"
        lines.append(
            f"| {name} | {middle:,.2f} ({least:,.2f} - {most:,.2f}) | {middle / 1e3 / floor:,.2f} "
            f"| {measured.state_elements:,} | {extra} | {moved[name]:.0%} |"
        )
    return "\n".join(lines)


def compare(
    names: Sequence[str], size: int, share: float, optimizer: str, rounds: int, memory: bool
) -> dict[str, Figures]:
    """Return the figures of all ways at one size."""
    if size > TOGETHER:
        return {name: run_alone(name, size, share, optimizer, max(3, rounds // 8)) for name in names}
    figures = run_together(names, size, share, optimizer, rounds)
    for name in names if memory else ():
        figures[name].extra_memory = run_alone(name, size, share, optimizer, 3).extra_memory
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Prove that all ways agree, time them, print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="small tables and few rounds: does it run?")
    parser.add_argument(
        "--rounds", type=int, default=40, help="steps that are timed; an eighth of it, or a second, alone"
    )
    parser.add_argument("--only", nargs="+", choices=WAYS, help="only these ways, and frozen")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--alone", nargs=5, metavar=("WAY", "V", "SHARE", "OPTIMIZER", "ROUNDS"), help=argparse.SUPPRESS
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.alone:
        name, size, share, optimizer, rounds = args.alone
        _alone(name, int(size), float(share), optimizer, int(rounds))
        return 0
    wanted = [name for name in WAYS if not args.only or name in ("frozen", *args.only)]
    names = [name for name in wanted if name != "peft" or find_spec("peft")]
    if names != wanted:
        print("peft is not installed, so its row is left out: pip install peft\n")
    moved = check(names)
    print(f"All agree. D = {D}, {IDS:,} ids a step, {args.threads} thread(s), torch {torch.__version__}.")
    sizes = [(2_000, 0.01)] if args.quick else [(100_000, 0.01), (400_000, 0.01), (4_000_000, 0.01), (4_000_000, 0.1)]
    for optimizer in ("sgd", "adam"):
        for size, share in sizes:
            alone = ", each in its own process" if size > TOGETHER else ""
            print(f"\n### {optimizer.upper()}, V = {size:,}, {share:.0%} of the rows learn{alone}\n", flush=True)
            rounds, memory = (3, False) if args.quick else (args.rounds, Path("/proc/self/clear_refs").exists())
            print(table_of(compare(names, size, share, optimizer, rounds, memory), moved), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
