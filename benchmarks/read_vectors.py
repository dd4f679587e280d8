"""How long does it take to read word vectors from text, and to open them again?

Compares, in one run and in turns, on one file (GloVe text, without a header)
    gensim     KeyedVectors.load_word2vec_format
    polars     fl.vectors.load, empty cache, polars installed; also writes the cache file
    no cache   the same with cache=False
    numpy      the same without polars (one round)
    again      fl.vectors.load of a cached file

The goal: polars at most a twentieth of gensim, again at most 50 ms. All must give the same words and bits first.
Run:    python benchmarks/read_vectors.py [FILE] [--rounds N]
Without FILE a synthetic one is made: 100,000 words x 50 dimensions, five digits each.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from frostline import vectors


def synthetic(path: Path, words: int = 100_000, width: int = 50) -> Path:
    """Write a file that looks like GloVe's."""
    draw = np.random.default_rng(0)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in range(words):
            file.write(f"word{row} " + " ".join(f"{value:.5g}" for value in draw.normal(scale=0.5, size=width)) + "\n")
    return path


def main() -> int:
    """Compare and print; return 1 if the results differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FROSTLINE_CACHE"] = f"{folder}/cache"
        return compare(args.file or synthetic(Path(folder) / "synthetic.txt"), args.rounds, Path(folder) / "cache")


def compare(path: Path, rounds: int, cache: Path) -> int:
    """Time all variants in turns; return 1 if their results differ."""
    from gensim.models import KeyedVectors

    def clear() -> None:
        shutil.rmtree(cache, ignore_errors=True)

    def without_polars() -> vectors.Vectors:
        polars = sys.modules.get("polars")
        sys.modules["polars"] = None  # type: ignore[assignment]
        try:
            return vectors.load(path, cache=False)
        finally:
            if polars is None:
                del sys.modules["polars"]
            else:
                sys.modules["polars"] = polars

    variants: dict[str, tuple[Callable[[], None], Callable[[], Any], int]] = {
        "gensim": (clear, lambda: KeyedVectors.load_word2vec_format(str(path), no_header=True), rounds),
        "polars": (clear, lambda: vectors.load(path), rounds),
        "again": (lambda: None, lambda: vectors.load(path), rounds),
        "no cache": (clear, lambda: vectors.load(path, cache=False), rounds),
        "numpy": (clear, without_polars, 1),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    theirs: Any = None
    for turn in range(rounds):
        for name, (prepare, call, turns) in variants.items():
            if turn >= turns:
                continue
            prepare()
            begun = time.perf_counter()
            result = call()
            times[name].append(time.perf_counter() - begun)
            if name == "gensim":
                theirs = result
            elif list(result.words) != theirs.index_to_key or not np.array_equal(result.matrix, theirs.vectors):
                print(f"{name} and gensim disagree on {path}")
                return 1
            del result  # outside the next timing: unmapping a deleted file takes time, too
    print(
        f"{path.name}: {len(theirs):,} words x {theirs.vector_size}, {path.stat().st_size:,} bytes; "
        "all agree bit by bit"
    )
    middle = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, seconds in times.items():
        print(
            f"{name:<9} median {1000 * middle[name]:10.2f} ms   "
            f"range {1000 * min(seconds):.2f} to {1000 * max(seconds):.2f}"
            f"   gensim / this {middle['gensim'] / middle[name]:10.1f}"
        )
    met = middle["polars"] <= middle["gensim"] / 20 and middle["again"] <= 0.05
    print("goal met" if met else "GOAL MISSED: polars at most a twentieth of gensim, again at most 50 ms")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
