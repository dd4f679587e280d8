"""How long does it take from a text to word vectors, how much memory, and how good are they?

Trains CBOW on one plain text in separate processes, which take turns:
    frostline    frostline word2vec, from the text to a file of vectors
    torch        the same in plain torch, without the kernel, on a part of the text (--torch)
    gensim       Word2Vec(corpus_file=...), the same settings and number of threads

The goal: at least twice as fast as gensim, and at most its memory.
Run:    python benchmarks/word2vec.py [TEXT] [--similarity F] [--analogies F] [--threads N] [--rounds N] [--torch]
Without TEXT a made-up one is used. Of --threads, 1 and N are measured. To see what the kernel does without AVX-512, set
CXX to a script that calls the compiler with -mavx2 for -march=native (tests/word2vec/test_step.py has one).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from frostline.printing import text_table
from frostline.vectors import load
from frostline.vectors.evaluate import analogies, similarity

_REPORT = """
usage = resource.getrusage(resource.RUSAGE_SELF)
lines = open("/proc/self/status").readlines()  # not ru_maxrss, which counts the parent
peak = [line.split()[1] for line in lines if line.startswith("VmHWM")]
print(json.dumps([time.perf_counter() - began, usage.ru_utime + usage.ru_stime, int(peak[0]) / 1024]))
"""
_OURS = """
import json, resource, sys, time
began = time.perf_counter()
from frostline.word2vec import Settings, train
text, out, threads, epochs, seed, dim = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
train(text, Settings(epochs=epochs, seed=seed, dim=dim), out=out, threads=threads)
"""
_GENSIM = """
import json, resource, sys, time
began = time.perf_counter()
from gensim.models import Word2Vec
text, out, threads, epochs, seed, dim = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
model = Word2Vec(corpus_file=text, vector_size=dim, window=5, negative=5, min_count=5, sample=1e-3, alpha=0.05,
                 epochs=epochs, workers=threads, seed=seed, sg=0)
model.wv.save_word2vec_format(out, binary=True)
"""


def made_up(path: Path, words: int) -> Path:
    """Write a text of made-up words whose counts fall as in English."""
    draw = np.random.default_rng(0)
    ids = (1 / (draw.random(words) + 5e-5)).astype(np.int64)  # the word of rank r occurs in proportion to 1 / r^2 or so
    with path.open("w") as file:
        for first in range(0, words, 40):
            file.write(" ".join(f"w{index}" for index in ids[first : first + 40].tolist()) + "\n")
    return path


def measure(code: str, text: Path, out: Path, *numbers: int, backend: str = "") -> list[float]:
    """Run a program; return its seconds, CPU seconds and peak memory in MB."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FROSTLINE_BACKEND": backend}
    command = [sys.executable, "-c", code + _REPORT, str(text), str(out), *map(str, numbers)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: list[float] = json.loads(done.stdout)
    return found


def main() -> int:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("text", nargs="?", type=Path)
    parser.add_argument("--similarity", type=Path)
    parser.add_argument("--analogies", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, with seeds of their own")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--dim", type=int, default=100)
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.epochs, args.dim = 1, 1, 10
    with tempfile.TemporaryDirectory() as folder:
        text = args.text or made_up(Path(folder) / "text.txt", 20_000 if args.quick else 3_000_000)
        return compare(args, text, Path(folder))


def compare(args: argparse.Namespace, text: Path, folder: Path) -> int:
    """Print a line for each way; return 1 where the goal is missed."""
    measure(_OURS, made_up(folder / "small.txt", 2000), folder / "v.bin", 1, 1, 0, 4)  # compiles the kernel
    ways = {
        (name, threads): (code, threads)
        for threads in sorted({1, args.threads})
        for name, code in (("frostline", _OURS), ("gensim", _GENSIM))
    }
    runs: dict[tuple[str, int], list[list[float]]] = {way: [] for way in ways}
    scores: dict[tuple[str, int], list[list[float]]] = {way: [] for way in ways}
    for seed in range(args.rounds):
        for way, (code, threads) in ways.items():
            out = folder / "v.bin"
            runs[way].append(measure(code, text, out, threads, args.epochs, seed, args.dim))
            scores[way].append(_score(args, out))
            print(way, [round(x, 3) for x in runs[way][-1] + scores[way][-1]], file=sys.stderr, flush=True)
    titles = ["way", "threads", "seconds", "(lowest, highest)", "CPU seconds", "MB", "similarity", "analogies"]
    rows = [titles]
    for (name, threads), found in runs.items():
        seconds, cpu_seconds, memory = zip(*found, strict=True)
        spread = f"({min(seconds):.1f}, {max(seconds):.1f})"
        middle = [f"{statistics.median(values):.1f}" for values in (seconds, cpu_seconds)]
        mean = [f"{np.mean(values):.3f}" for values in zip(*scores[name, threads], strict=True)]
        rows.append([name, str(threads), middle[0], spread, middle[1], f"{max(memory):.0f}", *mean])
    print(text_table(rows, right=range(1, 8)))
    ours, theirs = runs["frostline", args.threads], runs["gensim", args.threads]
    ratio = statistics.median(b[0] / a[0] for a, b in zip(ours, theirs, strict=True))
    cpu = statistics.median(b[1] / a[1] for a, b in zip(ours, theirs, strict=True))
    memory_kept = max(run[2] for run in ours) <= max(run[2] for run in theirs)
    print(f"\ngensim / frostline, {args.threads} threads: {ratio:.2f} (seconds), {cpu:.2f} (CPU seconds)")
    if args.torch:
        _plain_torch(args, text, folder)
    met = ratio >= 2 and memory_kept
    print("goal met" if met else "GOAL MISSED: at least twice as fast as gensim, at most its memory")
    return 0 if met or args.quick else 1


def _score(args: argparse.Namespace, out: Path) -> list[float]:
    vectors = load(out, cache=False)
    pairs = similarity(vectors, args.similarity).spearman if args.similarity else float("nan")
    questions = analogies(vectors, args.analogies, 30_000).accuracy if args.analogies else float("nan")
    return [pairs, questions]


def _plain_torch(args: argparse.Namespace, text: Path, folder: Path) -> None:
    """Print how fast plain torch is, on the first 200,000 words, beside the kernel on the same."""
    part = folder / "part.txt"
    with text.open("rb") as file:
        part.write_bytes(file.read(1_100_000).rpartition(b"\n")[0])
    words = len(part.read_bytes().split())
    for backend in ("torch", "c++"):
        taken, *_ = measure(_OURS, part, folder / "v.bin", 1, 1, 0, args.dim, backend=backend)
        print(f"{words:,} words, {backend}: {taken:.1f} s, imports included")


if __name__ == "__main__":
    raise SystemExit(main())
