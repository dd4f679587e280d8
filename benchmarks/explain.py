"""What does it cost to ask why a parameter does not train?

Compares, on models from 0.01 to 100 million parameters,
    pass      one forward and backward
    step      one forward, backward and AdamW step
    explain   fl.explain, with the optimizer: a watched pass, a step, everything restored
    watched   the step, in fl.watching
    light     the step, in fl.watching(light=True)
    after     the step after a watched one
Each model has a layer that is cut off by `detach`. Before anything is timed, explain and watching must name exactly its
parameters; explain must leave every weight unchanged, and the watched step must give the bits of one that is not.

Run:    python benchmarks/explain.py [--quick]
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable, Mapping

os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import frostline as fl

# name -> vocabulary, width, layers, sequences, words in each
SIZES = {
    "0.01 million": (100, 16, 2, 2, 8),
    "1 million": (2_000, 128, 3, 8, 32),
    "20 million": (20_000, 384, 6, 8, 64),
    "100 million": (30_000, 768, 9, 2, 32),
}


class Model(nn.Module):
    """Words -> a layer that is cut off -> transformer layers -> words."""

    def __init__(self, vocabulary: int, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.cut_off = nn.Linear(width, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True) for _ in range(layers)
        )
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits (B, T, V) for ids (B, T)."""
        h = self.embed(ids)
        h = h + self.cut_off(h).detach()
        for layer in self.layers:
            h = layer(h)
        logits: Tensor = self.head(h)
        return logits


def timed(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each way; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - began)
    return times


def check_bits(
    one_step: Callable[[], None], watched_step: Callable[[], None], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Take the same step watched and not watched, and compare weights, optimizer state and random numbers."""

    def state() -> list[Tensor]:
        moments = [value for values in optimizer.state.values() for value in values.values()]
        return [tensor.detach().clone() for tensor in (*model.parameters(), *moments, torch.get_rng_state())]

    start, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    results = []
    for step in (one_step, watched_step):
        model.load_state_dict(weights)
        optimizer.load_state_dict(copy.deepcopy(start))
        torch.manual_seed(1)
        step()
        results.append(state())
    assert all(torch.equal(watched, plain) for watched, plain in zip(*results, strict=True))
    assert not all(map(torch.equal, results[0], weights.values()))


def measure(size: tuple[int, int, int, int, int], repeats: int) -> tuple[int, dict[str, list[float]]]:
    """Return the number of parameters, and the seconds of each way."""
    vocabulary, width, layers, sequences, words = size
    torch.manual_seed(0)
    model = Model(vocabulary, width, layers)
    ids = torch.randint(vocabulary, (sequences, words))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss_fn() -> Tensor:
        return F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())

    def one_pass() -> None:
        optimizer.zero_grad()
        loss_fn().backward()

    def one_step() -> None:
        one_pass()
        optimizer.step()

    one_step()  # so that the optimizer has state, as in the middle of a run
    optimizer.zero_grad()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    explanation = fl.explain(model, loss_fn, optimizer)
    assert explanation.alarms == ["cut_off.weight", "cut_off.bias"], explanation
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))

    def watched_step(light: bool = False) -> None:
        with fl.watching(model, optimizer, light=light) as seen:
            one_step()
        assert seen.explanation.alarms == ["cut_off.weight", "cut_off.bias"], seen.explanation

    check_bits(one_step, watched_step, model, optimizer)
    ways: dict[str, Callable[[], object]] = {
        "pass": one_pass,
        "step": one_step,
        "explain": lambda: fl.explain(model, loss_fn, optimizer),
        "light": lambda: watched_step(light=True),
        "watched": watched_step,
        "after": one_step,
    }
    return sum(weight.numel() for weight in before), timed(ways, repeats)


def main() -> None:
    """Measure every size, print a table."""
    parser = argparse.ArgumentParser(description="What does it cost to ask why a parameter does not train?")
    parser.add_argument("--quick", action="store_true", help="two small sizes, a few repeats")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = list(SIZES)[:2] if arguments.quick else list(SIZES)
    print(f"torch {torch.__version__}, one thread; milliseconds, median (least - most)\n")
    ways = "pass | step | explain | light | watched | after"
    print(f"| parameters | {ways} | explain / pass | watched / step | after / step |")
    print(f"|{' --: |' * 10}")
    for name in names:
        count, times = measure(SIZES[name], 2 if arguments.quick else arguments.repeats)
        cells = [
            f"{1000 * statistics.median(seconds):,.1f} ({1000 * min(seconds):,.1f} - {1000 * max(seconds):,.1f})"
            for seconds in times.values()
        ]
        ratios = [
            f"{min(times[way]) / min(times[other]):.2f}"  # of the least: a slow moment hits some more than others
            for way, other in (("explain", "pass"), ("watched", "step"), ("after", "step"))
        ]
        print(f"| {count:,} | {' | '.join([*cells, *ratios])} |", flush=True)


if __name__ == "__main__":
    main()
