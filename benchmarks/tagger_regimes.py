"""When does it pay to let only the missing words learn?

Trains the tagger three times on the same sentences with the same budget, several seeds each:
    none       every row of the table stays as it is
    missing    the training words that the vectors miss learn, and <unk>
    all        every row learns
and again on a part of the sentences (every second, every tenth, ...). Prints F1 on dev, mean and spread over the seeds,
and recall of the entities by their words: all of them in the vectors (*known*), one or more of them missing there but
seen in training (*learned*), one or more of them neither (*unknown*).

The table is first cut to the words of TRAIN and DEV. No other row would ever be read, so this changes the time, above
all that of *all*, and what is drawn for the missing words, which have the mean and the spread of the table.

Run:    python benchmarks/tagger_regimes.py TRAIN DEV VECTORS [--seeds N] [--parts 1 4] [--epochs N]
With --quick the sentences and vectors are made up and small.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from frostline import tagger, vectors
from tagger_speed import made_up

REGIMES: tuple[Literal["none", "missing", "all"], ...] = ("none", "missing", "all")
KINDS = ("known", "learned", "unknown")


def recall_by_kind(
    gold: Sequence[tagger.Sentence], found: Sequence[Sequence[str]], has_vector: set[str], trained: set[str]
) -> dict[str, tuple[int, int]]:
    """Return for each kind of entity how many were found, and how many there are."""
    counts = {kind: [0, 0] for kind in KINDS}
    for sentence, tags in zip(gold, found, strict=True):
        predicted = set(tagger.spans(tags))
        for span in tagger.spans(sentence.tags):
            kind = "known"
            for word in sentence.tokens[span.start : span.end]:
                if word not in has_vector and word.lower() not in has_vector:
                    kind = "learned" if word in trained and kind != "unknown" else "unknown"
            counts[kind][0] += span in predicted
            counts[kind][1] += 1
    return {kind: (right, total) for kind, (right, total) in counts.items()}


def main() -> None:
    """Train every regime on every part with every seed, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="TRAIN DEV VECTORS")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", type=int, nargs="+", default=[1], metavar="N", help="train on every N-th sentence")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if len(arguments.files) != (0 if arguments.quick else 3):
        parser.error("three files are needed: TRAIN, DEV and VECTORS; or none with --quick")
    if arguments.quick:
        arguments.seeds, arguments.epochs = 2, 2
    with tempfile.TemporaryDirectory() as folder:
        train_file, dev_file, table_file = made_up(Path(folder)) if arguments.quick else arguments.files
        train, dev = tagger.read_conll(train_file), tagger.read_conll(dev_file)
        table = vectors.load(table_file, cache=not arguments.quick)
    read = {form for tokens, _ in [*train, *dev] for token in tokens for form in (token, token.lower())}
    rows = [row for row, word in enumerate(table.words) if word in read]
    table = vectors.Vectors([table.words[row] for row in rows], table.matrix[rows])
    known = set(table.words)
    print(
        "| sentences | regime | F1 on dev: mean (each seed) | " + " | ".join(f"recall, {kind}" for kind in KINDS) + " |"
    )
    print("| --: | --- | --- | --: | --: | --: |")
    for part in arguments.parts:
        some = train[::part]
        trained = {token for tokens, _ in some for token in tokens}
        for regime in REGIMES:
            f1, kinds = [], dict.fromkeys(KINDS, (0, 0))
            for seed in range(arguments.seeds):
                run = tagger.train(some, dev, table, learn=regime, seed=seed, epochs=arguments.epochs)
                f1.append(100 * run.best.dev_f1)
                found = recall_by_kind(dev, run.tagger.predict([tokens for tokens, _ in dev]), known, trained)
                kinds = {k: (right + found[k][0], total + found[k][1]) for k, (right, total) in kinds.items()}
            recalls = " | ".join(f"{right / max(total, 1):.1%}" for right, total in kinds.values())
            each = f"{statistics.mean(f1):.1f} ({', '.join(f'{one:.1f}' for one in f1)})"
            print(f"| {len(some):,} | {regime} | {each} | {recalls} |", flush=True)


if __name__ == "__main__":
    main()
