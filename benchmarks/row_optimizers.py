"""What does a step on a large table cost, if it uses few of its rows?

Times lookup + backward + optimizer step of an embedding of V rows, 64 wide, with 8,192 ids a step, uniform or following
Zipf's law, and the optimizer's part alone. Four families:
    AdamW               RowAdamW, SparseAdam (which has no decay), AdamW(fused=True) over the whole table
    Adagrad             RowAdagrad, torch's Adagrad with a sparse gradient
    row-wise Adagrad    RowAdagrad(rowwise=True), FBGEMM's table on the CPU
    SGD                 RowSGD, torch's SGD with a sparse gradient, FBGEMM's table on the CPU
frostline's optimizers run twice: with the C++ kernel and in plain torch. The floor is the memory traffic of the rows in
use (value, state and gradient read, value and state written) at the bandwidth of a copy, measured in the same run.
First all must agree on the rows in use; then they take turns, each with new ids. A way finds the caches as the previous
one left them, or with `--before 3` as three untimed steps of its own left them.

Run:    python benchmarks/row_optimizers.py [--quick] [--before 3]
        (FBGEMM: pip install --no-deps fbgemm-gpu-cpu==1.8.0)
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module

os.environ["GOMP_SPINCOUNT"] = "0"  # idle threads do not spin: other processes may need the core

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import frostline as fl

D, IDS = 64, 8192
LR = 0.01
DENSE_UP_TO = 1_000_000  # rows; beyond, a dense step takes seconds
BYTES = {"AdamW": 7, "Adagrad": 5, "row-wise Adagrad": 3, "SGD": 3}  # rows read and written per row in use

Optimizer = torch.optim.Optimizer


class Way:
    """One way to do a step: `look_up`, backward, `optimizer`; FBGEMM's backward is the step."""

    def __init__(self, name: str, optimizer: Optimizer | None, look_up: Callable[[Tensor], Tensor]) -> None:
        self.name, self.optimizer, self.look_up = name, optimizer, look_up
        self.backend = "c++" if name.endswith("(C++)") else "torch"
        self.steps: list[float] = []
        self.parts: list[float] = []

    def step(self, ids: Tensor, upstream: Tensor) -> tuple[float, float]:
        """Do one step; ids (n,), upstream gradient (n, D). Return seconds, and those of the optimizer."""
        os.environ["FROSTLINE_BACKEND"] = self.backend
        start = time.perf_counter()
        self.look_up(ids).backward(upstream)
        middle = time.perf_counter()
        if self.optimizer is not None:
            self.optimizer.step()
            end = time.perf_counter()
            self.optimizer.zero_grad()
        else:
            end = middle
        return time.perf_counter() - start, end - middle


@dataclass
class Family:
    """Ways that do the same arithmetic.

    Attributes:
        ours: Makes frostline's optimizer.
        theirs: Name -> what makes torch's optimizer, and whether it needs a dense gradient.
        fbgemm: FBGEMM's name of the optimizer, or None.
    """

    ours: Callable[[list[nn.Parameter]], Optimizer]
    theirs: dict[str, tuple[Callable[[list[nn.Parameter]], Optimizer], bool]] = field(default_factory=dict)
    fbgemm: str | None = None


FAMILIES = {
    "AdamW": Family(
        lambda p: fl.optim.RowAdamW(p, lr=LR, weight_decay=0),
        {
            "SparseAdam": (lambda p: torch.optim.SparseAdam(p, lr=LR), False),
            "AdamW, fused, dense": (lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=0, fused=True), True),
        },
    ),
    "Adagrad": Family(
        lambda p: fl.optim.RowAdagrad(p, lr=LR),
        {"torch's Adagrad": (lambda p: torch.optim.Adagrad(p, lr=LR), False)},
    ),
    "row-wise Adagrad": Family(lambda p: fl.optim.RowAdagrad(p, lr=LR, rowwise=True), fbgemm="EXACT_ROWWISE_ADAGRAD"),
    "SGD": Family(
        lambda p: fl.optim.RowSGD(p, lr=LR),
        {"torch's SGD": (lambda p: torch.optim.SGD(p, lr=LR), False)},
        fbgemm="EXACT_SGD",
    ),
}


def fbgemm_table(values: Tensor, optimizer: str) -> Callable[[Tensor], Tensor]:
    """Return FBGEMM's table (V, D), which steps in its backward."""
    host = import_module("fbgemm_gpu.split_table_batched_embeddings_ops_common").EmbeddingLocation.HOST
    ops = import_module("fbgemm_gpu.split_table_batched_embeddings_ops_training")
    table = ops.SplitTableBatchedEmbeddingBagsCodegen(
        [(len(values), D, host, ops.ComputeDevice.CPU)],
        optimizer=ops.OptimType[optimizer],
        learning_rate=LR,
        eps=1e-10,
    )
    table.split_embedding_weights()[0].copy_(values)
    offsets = torch.arange(IDS + 1)  # each id is a bag of its own

    def look_up(ids: Tensor) -> Tensor:
        looked_up: Tensor = table(ids, offsets[: len(ids) + 1])
        return looked_up

    look_up.read = lambda: table.split_embedding_weights()[0]  # type: ignore[attr-defined]
    return look_up


def why_no_fbgemm() -> str | None:
    """Return why FBGEMM cannot be used, or None."""
    try:
        fbgemm_table(torch.zeros(2, D), "EXACT_SGD")
    except Exception as error:
        return f"{type(error).__name__}: {error}".split("\n", 1)[0]
    return None


def make(name: str, values: Tensor, with_fbgemm: bool, copies: bool) -> tuple[list[Way], dict[str, Tensor]]:
    """Return the ways of a family, and the tables that they change: `values` itself (V, D), or copies of it."""
    family, ways, tables = FAMILIES[name], [], {}
    shared = nn.Parameter(values)
    row = type(family.ours([nn.Parameter(torch.zeros(1, 1))])).__name__
    optimizers = {
        f"{row} (C++)": (family.ours, False),
        f"{row} (plain torch)": (family.ours, False),
        **family.theirs,
    }
    ours: Optimizer | None = None
    for title, (build, dense) in optimizers.items():
        if dense and len(values) > DENSE_UP_TO:
            continue
        weight = nn.Parameter(values.clone()) if copies else shared
        if build is family.ours and not copies:  # both of ours can share their state
            optimizer = ours = ours or build([weight])
        else:
            optimizer = build([weight])
        ways.append(Way(title, optimizer, partial(F.embedding, weight=weight, sparse=not dense)))
        tables[title] = weight.detach()
    if family.fbgemm and with_fbgemm:
        look_up = fbgemm_table(values, family.fbgemm)
        ways.append(Way("FBGEMM", None, look_up))
        tables["FBGEMM"] = look_up.read()  # type: ignore[attr-defined]
    return ways, tables


def check(with_fbgemm: bool) -> None:
    """Prove that all ways of a family learn the same, and that the kernel and plain torch give the same bits."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1000, D, generator=generator)
    ids = torch.randint(500, (700,), generator=generator)
    for name in FAMILIES:  # within 1e-4 of steps of 1e-2: SparseAdam adds eps elsewhere
        ways, tables = make(name, values, with_fbgemm, copies=True)
        for _ in range(3):
            upstream = torch.randn(len(ids), D, generator=generator)
            for way in ways:
                way.step(ids, upstream)
        first, second, *_ = tables.values()
        assert torch.equal(first, second), f"{name}: the kernel and plain torch differ"
        assert (first[ids] != values[ids]).any(dim=1).all(), f"{name}: the rows in use did not move"
        for title, table in tables.items():
            close = torch.allclose(table[ids], first[ids], atol=1e-4, rtol=1e-5)
            assert close, f"{title} and {next(iter(tables))} differ"


def draw(law: str, size: int) -> Tensor:
    """Return ids (IDS,) of a table with `size` rows. By Zipf's law, the k-th row has a frequency of 1 / k."""
    if law == "uniform":
        return torch.randint(size, (IDS,))
    rank = (size ** torch.rand(IDS, dtype=torch.float64)).long().clamp(max=size - 1)
    return rank * 7_368_787 % size  # a prime: frequent rows lie anywhere in the table


def bandwidth() -> float:
    """Return the bytes per second that a copy reads and writes."""
    source = torch.ones(2**26)
    target, seconds = torch.empty_like(source), []
    for _ in range(8):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / statistics.median(seconds)


def compare(
    name: str, law: str, values: Tensor, rounds: int, before: int, with_fbgemm: bool
) -> tuple[list[Way], float]:
    """Time a family in turns; return its ways, and how many rows a step used."""
    ways, _ = make(name, values, with_fbgemm, copies=False)
    upstream, used = torch.randn(IDS, D), []
    for turn in range(rounds + 3):
        for way in ways:
            for _ in range(before):
                way.step(draw(law, len(values)), upstream)
            ids = draw(law, len(values))
            used.append(len(ids.unique()))
            seconds, part = way.step(ids, upstream)
            if turn >= 3:  # the first ones make state and warm up
                way.steps.append(seconds)
                way.parts.append(part)
    return ways, statistics.mean(used)


def table_of(name: str, ways: Sequence[Way], used: float, speed: float) -> str:
    """Return the figures as a Markdown table."""
    floor = used * BYTES[name] * D * 4 / speed
    lines = [
        f"| {name} | ms a step: median (least - most) | x the first | optimizer: ms | x {1e3 * floor:.2f} ms |",
        "| --- | --: | --: | --: | --: |",
    ]
    first = statistics.median(ways[0].steps)
    for way in ways:
        least, middle, most = (f(way.steps) for f in (min, statistics.median, max))
        part = statistics.median(way.parts)
        own = f"{1e3 * part:,.2f} | {part / floor:,.1f}" if way.optimizer else "- | -"
        times = f"{1e3 * middle:,.2f} ({1e3 * least:,.2f} - {1e3 * most:,.2f})"
        lines.append(f"| {way.name} | {times} | {middle / first:,.2f} | {own} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Prove that all ways agree, time them, print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a small table and few rounds: does it run?")
    parser.add_argument("--rounds", type=int, default=40, help="steps that are timed")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000], metavar="V")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=[*FAMILIES])
    parser.add_argument("--before", type=int, default=0, help="untimed steps before each that is timed")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    backend, reason = fl.optim.backend(), why_no_fbgemm()
    if backend.name != "c++":
        raise SystemExit(f"The kernel is not in use, so there is nothing to compare. {backend}")
    if reason:
        print(f"FBGEMM is left out: {reason}\n")
    check(reason is None)
    print(f"All agree. D = {D}, {IDS:,} ids a step, {args.threads} thread(s), torch {torch.__version__}.")
    sizes, rounds = ([20_000], 2) if args.quick else (args.sizes, args.rounds)
    for size in sizes:
        for law in ("uniform", "Zipf"):
            speed = bandwidth()
            print(f"\n### V = {size:,}, {law} ids, copy at {speed / 1e9:.0f} GB/s", flush=True)
            for name in args.families:
                ways, used = compare(name, law, torch.randn(size, D), rounds, args.before, reason is None)
                print(f"\n{table_of(name, ways, used, speed)}", flush=True)
                del ways
                gc.collect()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
