"""What do memory and time cost if a table stays in its file?

Compares one forward + backward + step of SGD over 2,048 ids, of which about one in a hundred learns, on a table of
10,000,000 x 100 float32 (4 GB), each way in its own process:
    mapped      fl.mapped_embedding over a safetensors file, 1 % of the rows learn, sparse gradient
    in memory   the same table read into an nn.Embedding, fl.train_only, sparse gradient
Memory is the process's private memory (RssAnon), without the page cache, which the system shares and reclaims. The file
is first written to a temporary folder; both ways must have the same loss.

Run:    python benchmarks/mapped_table.py [--rows N] [--folder DIR]      (needs Linux)
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import frostline as fl

D, IDS, STEPS = 100, 2048, 200


def private_mb() -> float:
    """Return the private memory of this process, in MB."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1024


def measure(way: str, file: str) -> dict[str, float]:
    """Open, plan and step one way; return milliseconds and MB."""
    torch.set_num_threads(1)
    map_table = fl.mapped_embedding  # imported here, so that opening alone is timed
    start = private_mb()
    began = time.perf_counter()
    if way == "mapped":
        embed = map_table(file, sparse=True)
    else:
        embed = nn.Embedding.from_pretrained(load_file(file)["table"].clone(), freeze=False, sparse=True)
    opened = time.perf_counter() - began
    rows = embed.num_embeddings
    began = time.perf_counter()
    plan = fl.train_only(embed, {"weight": fl.rows(torch.arange(0, rows, 100))})
    planned = time.perf_counter() - began
    optimizer = torch.optim.SGD(plan.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(rows, (IDS,), generator=generator) for _ in range(STEPS)]
    ready, times, loss = private_mb(), [], torch.zeros(())
    for ids in batches:
        began = time.perf_counter()
        optimizer.zero_grad()
        loss = embed(ids).square().sum()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - began)
    return {
        "open": 1000 * opened,
        "plan": 1000 * planned,
        "step": 1000 * statistics.median(times),
        "least": 1000 * min(times),
        "most": 1000 * max(times),
        "ready": ready - start,
        "stepping": private_mb() - ready,
        "loss": loss.item(),
    }


def main() -> None:
    """Write the table, measure both ways, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", default=None, help="where the table is written (default: the temporary folder)")
    parser.add_argument("--alone", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(measure(*arguments.alone)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        file = f"{folder}/table.safetensors"
        save_file({"table": torch.randn(arguments.rows, D)}, file)
        results = {}
        for way in ("mapped", "in memory"):
            command = [sys.executable, __file__, "--alone", way, file]
            results[way] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert results["mapped"]["loss"] == results["in memory"]["loss"]
    print(
        f"{arguments.rows:,} x {D} float32, {4 * D * arguments.rows / 1e6:,.0f} MB; {torch.__version__}, one thread\n"
    )
    print("| way | open, ms | plan, ms | step, ms: median (least - most) | MB when ready | MB that stepping adds |")
    print("| --- | --: | --: | --: | --: | --: |")
    for way, r in results.items():
        step = f"{r['step']:.2f} ({r['least']:.2f} - {r['most']:.2f})"
        print(f"| {way} | {r['open']:,.1f} | {r['plan']:,.0f} | {step} | {r['ready']:,.0f} | {r['stepping']:,.1f} |")


if __name__ == "__main__":
    main()
