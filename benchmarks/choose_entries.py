"""Fine-tuning 1 % of the entries: which ones, and what is reached?

A small language model over bytes learns a first text, then another one. Compares, for the second,
    nothing     the model as the first text left it
    largest     the entries with the largest values learn
    gradient    the entries with the largest gradients learn, summed over some batches of the second text
    random      entries drawn at random learn
    everything  every entry of these tensors learns
in nats a byte on parts of both texts that nobody trains on: the second is what is reached, the first what is forgotten.
Each way takes the learning rate that is best for it on a dev part. The seeds draw other batches and random entries;
the first text is learned once. Without files a made-up text is used, which shows that it runs and nothing else.

Run:    python benchmarks/choose_entries.py FIRST.txt SECOND.txt
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # idle threads do not spin: other processes may need the core

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import frostline as fl

D, LAYERS, HEADS, CONTEXT, BATCH = 128, 2, 4, 64, 16
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)


class Block(nn.Module):
    """One layer of a transformer; every product is an `nn.Linear`."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        down: Tensor = self.down(F.gelu(self.up(self.norm2(x))))
        return x + down


class Model(nn.Module):
    """A language model over bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(256, D), nn.Embedding(CONTEXT, D)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, 256)

    def forward(self, windows: Tensor) -> Tensor:
        """Return the mean loss in nats a byte of windows (B, T + 1)."""
        x = self.embed(windows[:, :-1]) + self.position.weight
        return F.cross_entropy(self.head(self.norm(self.blocks(x))).flatten(0, 1), windows[:, 1:].flatten())


def matrices(model: nn.Module) -> dict[str, Tensor]:
    """Return the weight of every Linear, by name."""
    return {f"{name}.weight": m.weight for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def top(score: Tensor, share: float) -> Tensor:
    """Return a bool mask of the entries with the highest scores."""
    best = score.flatten().topk(max(1, int(share * score.numel()))).indices
    return torch.zeros(score.numel(), dtype=torch.bool).index_fill(0, best, True).view_as(score)


def largest(model: Model, batches: Sequence[Tensor]) -> list[Tensor]:
    """Score entries by their size."""
    return [weight.detach().abs() for weight in matrices(model).values()]


def largest_gradient(model: Model, batches: Sequence[Tensor]) -> list[Tensor]:
    """Score entries by the size of their gradients, summed over the batches."""
    weights = [*matrices(model).values()]
    scores = [torch.zeros_like(weight) for weight in weights]
    for batch in batches:
        for score, gradient in zip(scores, torch.autograd.grad(model(batch), weights), strict=True):
            score += gradient.abs()
    return scores


def by_chance(model: Model, batches: Sequence[Tensor]) -> list[Tensor]:
    """Score entries at random."""
    return [torch.rand(weight.shape) for weight in matrices(model).values()]


SCORES: dict[str, Callable[[Model, Sequence[Tensor]], list[Tensor]]] = {
    "largest": largest,
    "gradient": largest_gradient,
    "random": by_chance,
}


def plan_of(way: str, model: Model, share: float, batches: Sequence[Tensor]) -> fl.Plan:
    """Choose what learns."""
    if way == "everything":
        return fl.train_only(model, dict.fromkeys(matrices(model), fl.everything))
    scores = SCORES[way](model, batches)
    masks = {name: fl.entries(top(score, share)) for name, score in zip(matrices(model), scores, strict=True)}
    return fl.train_only(model, masks)


def windows_of(text: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return windows (count, T + 1) drawn from a text."""
    starts = torch.randint(len(text) - CONTEXT, (count,), generator=generator)
    return text[starts[:, None] + torch.arange(CONTEXT + 1)].long()


def train(model: Model, learns: list[nn.Parameter], text: Tensor, steps: int, rate: float, seed: int) -> float:
    """Take AdamW steps with a rate that falls to 0; return the process's milliseconds of a step (median)."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(learns, lr=rate, weight_decay=0.0)
    falls = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    seconds = []
    for _ in range(steps):
        start = time.process_time()
        optimizer.zero_grad()
        model(windows_of(text, BATCH, generator)).backward()
        optimizer.step()
        falls.step()
        seconds.append(time.process_time() - start)
    return 1e3 * statistics.median(seconds)


@torch.no_grad()
def score(model: Model, text: Tensor, count: int) -> float:
    """Return nats a byte over some windows, always the same."""
    windows = windows_of(text, count, torch.Generator().manual_seed(0))
    return statistics.fmean(float(model(part)) for part in windows.split(64))


def parts_of(path: str | None, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a text's bytes: for training, dev and test (the last two twentieths)."""
    letters = torch.randint(97, 105, (8,), generator=torch.Generator().manual_seed(seed)).tolist()
    text = Path(path).read_bytes() if path else bytes(letters * 1_000)
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    last = len(data) // 20
    return data[: -2 * last], data[-2 * last : -last], data[-last:]


def main(argv: Sequence[str] | None = None) -> int:
    """Learn the first text, fine-tune in every way, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("files", nargs="*", help="the first text and the second")
    parser.add_argument("--share", type=float, default=0.01, help="of the entries of every Linear, in 0 .. 1")
    parser.add_argument("--first-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="each way takes the best of them")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=8, help="batches that the gradient is summed over")
    parser.add_argument("--windows", type=int, default=512, help="parts of 64 bytes that a model is scored on")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    if len(args.files) not in (0, 2):
        parser.error("files: give two texts, the first and the second, or none")
    torch.set_num_threads(args.threads)
    first, second = (parts_of(args.files[i] if args.files else None, i) for i in (0, 1))
    torch.manual_seed(0)
    start = Model()
    train(start, [*start.parameters()], first[0], args.first_steps, 3e-3, seed=0)
    untouched = (score(start, text[2], args.windows) for text in (second, first))
    print("nothing learns: {:.3f} on the second text, {:.3f} on the first".format(*untouched))

    def run(way: str, rate: float, seed: int) -> tuple[Model, float, float, int]:
        """Return the model, the ms of choosing, those of a step, and how many entries learn."""
        model = copy.deepcopy(start)
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(1_000 + seed)
        began = time.process_time()
        plan = plan_of(way, model, args.share, [windows_of(second[0], BATCH, generator) for _ in range(args.batches)])
        choosing = 1e3 * (time.process_time() - began)
        step = train(model, plan.parameters(), second[0], args.steps, rate, seed)
        return model, choosing, step, sum(p.numel() for p in plan.parameters())

    print(
        "| what learns | entries | rate | second text: mean (each seed) | first text: mean | ms to choose | ms a step |"
    )
    print("| --- | --: | --: | --- | --: | --: | --: |", flush=True)
    for way in (*SCORES, "everything"):
        rate = min(args.rates, key=lambda rate: score(run(way, rate, 100)[0], second[1], args.windows))
        runs = [run(way, rate, seed) for seed in range(1, args.seeds + 1)]
        reached = [score(model, second[2], args.windows) for model, *_ in runs]
        forgot = statistics.fmean(score(model, first[2], args.windows) for model, *_ in runs)
        choosing, step = min(run[1] for run in runs), min(run[2] for run in runs)
        each = ", ".join(f"{value:.3f}" for value in reached)
        print(
            f"| {way} | {runs[0][3]:,} | {rate:g} | {statistics.fmean(reached):.3f} ({each}) | {forgot:.3f} "
            f"| {choosing:,.0f} | {step:.1f} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
