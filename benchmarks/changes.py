"""What does it cost to know what changed in a model?

Of a state of bfloat16 entries, of which 1 % have another bit, compares
    copy        tensor.copy_(other): the same bytes, read and written once                  (the floor)
    c++         the entries that differ, their indices and values: one pass of the kernel
    plain       the same without a compiler: numpy
    torch       (a != b).nonzero(), then a[index]: what one would write
    digest      fl.digest
    sha256      hashlib.sha256 of the same bytes
    save        Changes.save: the pass, the digest, and a file on the disk
    apply       fl.apply_changes on the model: two digests, and what changed is written
    diff        frostline.changes.diff of two files: 1 % of the entries differ, and (diff all) every one
All run on one thread. Times are CPU time; the variants take turns; the ways to find must agree before they are timed.

Run:    python benchmarks/changes.py [--entries 100000000] [--rounds 7]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import frostline as fl
from frostline.changes import diff
from frostline.changes.one_pass import bits_of, differing
from frostline.optim import huge_pages
from frostline.printing import text_table


def find(backend: str, now: Tensor, base: Tensor) -> Tensor:
    """Return the indices of the entries that differ, int64, found by one of the ways."""
    if backend == "torch":
        index = (now != base).nonzero().squeeze(1)
        _ = now[index]
        return index
    os.environ["FROSTLINE_BACKEND"] = {"c++": "c++", "plain": "torch"}[backend]
    parts = [*differing(now, base)]
    os.environ.pop("FROSTLINE_BACKEND")
    return torch.cat([part.index for part in parts])


def main() -> None:
    """Time all of them and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=100_000_000, help="entries of the state (default 100,000,000)")
    parser.add_argument("--rounds", type=int, default=7, help="how often each is timed (default 7)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    n = args.entries
    model = nn.ParameterList([torch.randn(n // 1000, 1000).bfloat16()])
    now = bits_of(model[0].detach())
    base = huge_pages.full(now.shape, 0, now.dtype, now.device).copy_(now)  # as Changes keeps it
    moved = torch.randperm(n)[: n // 100].sort().values
    folder = Path(tempfile.mkdtemp())
    save_file({"0": model[0].detach()}, folder / "a.safetensors")
    changes, twin = fl.Changes(model), nn.ParameterList([model[0].detach().clone()])
    now[moved] ^= 1
    save_file({"0": model[0].detach()}, folder / "b.safetensors")
    save_file({"0": -model[0].detach() * 1.5 - 1}, folder / "c.safetensors")
    target = torch.empty_like(now)
    for way in ("c++", "plain", "torch"):
        assert torch.equal(find(way, now, base), moved), way
    number = 0

    def save() -> None:
        nonlocal number
        number += 1
        now[moved] ^= 2 << number % 3  # never what `base` has: its lowest bit stays another
        changes.save(folder / f"{number}.changes")

    def apply() -> None:
        fl.apply_changes(twin, folder / f"{number}.changes")

    ways: dict[str, Callable[[], object]] = {
        "copy": lambda: target.copy_(now),
        "c++": lambda: find("c++", now, base),
        "plain": lambda: find("plain", now, base),
        "torch": lambda: find("torch", now, base),
        "digest": lambda: fl.digest(model),
        "sha256": lambda: hashlib.sha256(now.numpy().data).digest(),
        "diff": lambda: diff(folder / "a.safetensors", folder / "b.safetensors"),
        "diff all": lambda: diff(folder / "a.safetensors", folder / "c.safetensors"),
        "save": save,
        "apply": apply,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, call in ways.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    floor = min(times["copy"])
    rows = [("", "median ms", "least ms", "times copy", "GB/s of one state")]
    for name, taken in times.items():
        least = min(taken)
        figures = f"{1e3 * statistics.median(taken):.1f}", f"{1e3 * least:.1f}", f"{least / floor:.2f}"
        rows.append((name, *figures, f"{2 * n / least / 1e9:.1f}"))
    size = (folder / "1.changes").stat().st_size
    print(text_table(rows, right=[1, 2, 3, 4]))
    print(
        f"\n{n:,} bfloat16 entries, {len(moved):,} changed; a file of them has {size / 1e6:.1f} MB of {2 * n / 1e6:.0f}"
    )
    print(f"load {os.getloadavg()[0]:.1f}; {args.rounds} rounds; torch {torch.__version__}")


if __name__ == "__main__":
    main()
