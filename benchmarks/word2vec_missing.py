"""Do words that were cut out of pretrained vectors find their neighbours again when they learn from a text?

Cuts 1,000 of the 5,000 most frequent words of the text out of the vectors, trains on the text from the rest, and
compares the ten nearest neighbours of each cut word with those it has in the whole file (precision at 10), among the
words that are in both text and file.
    missing    frostline, the cut words learn, all others keep every bit
    all        frostline, every word learns
    lockf      gensim, vectors_lockf 0 for known words (with --gensim)
Run:    python benchmarks/word2vec_missing.py TEXT VECTORS [--epochs N] [--gensim]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frostline import vectors, word2vec
from frostline.printing import text_table
from frostline.word2vec.audit import audit
from frostline.word2vec.corpus import write_corpus

_CUT, _AMONG, _NEAREST = 1000, 5000, 10


def main() -> int:
    """Train in each way and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("text")
    parser.add_argument("vectors")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gensim", action="store_true", help="gensim as well; TEXT must be plain text")
    parser.add_argument("--ways", nargs="+", default=["missing", "all"])
    args = parser.parse_args()
    whole = vectors.load(args.vectors)
    with tempfile.TemporaryDirectory() as folder:
        words = [word for word in write_corpus(args.text, Path(folder), min_count=5).words if word in whole]
    frequent = words[:_AMONG]
    chosen = np.random.default_rng(args.seed).choice(len(frequent), min(_CUT, len(frequent) // 2), replace=False)
    cut = [frequent[index] for index in sorted(chosen.tolist())]
    names, removed = list(whole.words), set(cut)
    rest = vectors.Vectors([w for w in names if w not in removed], whole.matrix[[w not in removed for w in names]])
    known = vectors.Vectors(words, whole.matrix[whole.rows_of(words)])
    right = neighbours(known.matrix, known.rows_of(cut))
    print(f"{len(cut):,} words cut, {len(words):,} words to find neighbours among\n", flush=True)
    rows = [["way", "precision at 10", "frozen values moved", "of", "seconds"]]
    settings = word2vec.Settings(dim=whole.dimension, epochs=args.epochs, alpha=args.alpha, seed=args.seed)
    for learn in args.ways:
        began = time.perf_counter()
        run = word2vec.train(args.text, settings, start=rest, learn=learn, only_text=True)
        found, seconds = audit(run), time.perf_counter() - began
        score = precision(run.vectors, words, cut, right)
        rows.append([learn, f"{score:.3f}", f"{found.frozen_moved:,}", f"{found.frozen_compared:,}", f"{seconds:.0f}"])
        print(rows[-1], flush=True)
    if args.gensim:
        rows.append(lockf(args, settings, rest, words, cut, right))
    print(text_table(rows, right=(1, 2, 3, 4)))
    return 0


def neighbours(matrix: NDArray[np.float32], rows: NDArray[np.int64]) -> list[set[int]]:
    """Return the rows nearest to each of `rows` by cosine."""
    units = matrix / np.linalg.norm(matrix, axis=1, keepdims=True).clip(1e-12)
    scores = units[rows] @ units.T
    scores[np.arange(len(rows)), rows] = -np.inf
    return [set(row) for row in np.argpartition(-scores, _NEAREST, axis=1)[:, :_NEAREST].tolist()]


def precision(trained: vectors.Vectors, words: list[str], cut: list[str], right: list[set[int]]) -> float:
    """Return the mean share of the right neighbours that are found."""
    table = vectors.Vectors(words, trained.matrix[trained.rows_of(words)])
    found = neighbours(table.matrix, table.rows_of(cut))
    return float(np.mean([len(a & b) / _NEAREST for a, b in zip(found, right, strict=True)]))


def lockf(
    args: argparse.Namespace,
    settings: word2vec.Settings,
    rest: vectors.Vectors,
    words: list[str],
    cut: list[str],
    right: list[set[int]],
) -> list[str]:
    """Train with gensim, known words locked; return the row of the table."""
    from gensim.models import Word2Vec

    began = time.perf_counter()
    model = Word2Vec(
        vector_size=settings.dim, window=5, negative=5, min_count=5, sample=1e-3, workers=2, seed=args.seed
    )
    model.build_vocab(corpus_file=args.text)
    row = rest.rows_of(model.wv.index_to_key)
    model.wv.vectors[row >= 0] = rest.matrix[row[row >= 0]]
    model.wv.vectors_lockf = (row < 0).astype(np.float32)
    before = model.wv.vectors[row >= 0].copy()
    model.train(
        corpus_file=args.text,
        total_words=model.corpus_total_words,
        total_examples=model.corpus_count,
        epochs=settings.epochs,
        start_alpha=settings.rate,
        end_alpha=1e-4,
    )
    moved, seconds = int((model.wv.vectors[row >= 0] != before).sum()), time.perf_counter() - began
    trained = vectors.Vectors(model.wv.index_to_key, model.wv.vectors)
    score = precision(trained, words, cut, right)
    return ["gensim, lockf", f"{score:.3f}", f"{moved:,}", f"{before.size:,}", f"{seconds:.0f}"]


if __name__ == "__main__":
    raise SystemExit(main())
