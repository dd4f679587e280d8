"""When does it pay to let only the missing words learn?

Trains the tagger three times on the same sentences with the same budget, several seeds each:
    none       no row of the table learns
    missing    <unk> and the training words that the vectors miss learn
    all        every row learns
and again on a part of the sentences (every second, every tenth, ...) and with only the first words of the vectors,
which in most files are the most frequent ones. Prints F1 on dev of the best epoch, mean and each seed; F1 of the same
weights on FAR, text of another kind that is used for nothing else; processor time per step in milliseconds; the peak
memory of the process so far, in MB; and the recall on dev of the entities, by the rarest of their words:
    seen       all words are in the vectors and in training
    vectors    a word is in the vectors alone
    learned    a word is in training alone
    unknown    a word is in neither

The table is cut to the words of TRAIN, DEV and FAR, unless --whole. No other row would ever be read, so this changes
the time, above all that of *all*, and the random rows of missing words, which have the table's mean and deviation.

Run:    python benchmarks/tagger_regimes.py TRAIN DEV VECTORS [--far FILE] [--parts 1 4] [--keep 2000] [--epochs N]
            [--log RUNS.jsonl]
--log adds a line for each finished training; those that the file already has are not run again, and
draw_tagger_regimes.py draws them. With --quick the sentences and vectors are made up and small.   (needs Linux)
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from frostline import tagger, vectors
from tagger_speed import made_up, peak_mb

REGIMES: tuple[Literal["none", "missing", "all"], ...] = ("none", "missing", "all")
KINDS = ("seen", "vectors", "learned", "unknown")


def recall_by_kind(
    gold: Sequence[tagger.Sentence], found: Sequence[Sequence[str]], vocabulary: tagger.Vocabulary, trained: set[int]
) -> dict[str, tuple[int, int]]:
    """Return (found, all) for each kind of entity; `trained` are the rows that training read."""
    counts = {kind: [0, 0] for kind in KINDS}
    unknown, learned = 1, 1 + vocabulary.missing  # row of <unk>, last row of the missing words
    for sentence, tags in zip(gold, found, strict=True):
        predicted = set(tagger.spans(tags))
        for span in tagger.spans(sentence.tags):
            rows = {vocabulary.row(token) for token in sentence.tokens[span.start : span.end]}
            if min(rows) <= learned:
                kind = "unknown" if unknown in rows else "learned"
            else:
                kind = "seen" if rows <= trained else "vectors"
            counts[kind][0] += span in predicted
            counts[kind][1] += 1
    return {kind: (right, total) for kind, (right, total) in counts.items()}


class Clock(tagger.Callback):
    """Sums the processor time of the steps, except the first of each epoch, before which more is done than a step."""

    seconds, steps, last = 0.0, 0, 0.0

    def batch(self, tokens: int) -> None:
        """A step was made."""
        now = time.process_time()
        if self.last:
            self.seconds, self.steps = self.seconds + now - self.last, self.steps + 1
        self.last = now

    def epoch(self, epoch: tagger.Epoch) -> None:
        """An epoch ended."""
        self.last = 0.0


def cut(table: vectors.Vectors, keep: int | None, read: set[str] | None) -> vectors.Vectors:
    """Return the first `keep` rows, and of these the ones whose word is in `read`; None: all of them."""
    rows = [row for row, word in enumerate(table.words[:keep]) if read is None or word in read]
    return vectors.Vectors([table.words[row] for row in rows], table.matrix[rows])


def measure(
    train: Sequence[tagger.Sentence],
    dev: Sequence[tagger.Sentence],
    far: Sequence[tagger.Sentence],
    table: vectors.Vectors,
    regime: Literal["none", "missing", "all"],
    seed: int,
    epochs: int,
) -> dict[str, Any]:
    """Train once; return what was measured."""
    clock = Clock()
    run = tagger.train(train, dev, table, learn=regime, seed=seed, epochs=epochs, callback=clock)
    vocabulary = run.tagger.vocabulary
    trained = {vocabulary.row(token) for tokens, _ in train for token in tokens}
    return {
        "f1": round(100 * run.best.dev_f1, 3),
        "far": round(100 * run.tagger.evaluate(far).f1, 3) if far else None,
        "best": run.best.number,
        "ms": round(1000 * clock.seconds / max(clock.steps, 1), 2),
        "MB": round(peak_mb(), 1),
        "tokens": round(run.coverage.found_tokens / run.coverage.tokens, 4),
        "kinds": recall_by_kind(dev, run.tagger.predict([tokens for tokens, _ in dev]), vocabulary, trained),
    }


def name(path: Path) -> str:
    """Return the last two parts of a path: the name of a file in the log."""
    return "/".join(path.parts[-2:])


def row(runs: Sequence[dict[str, Any]]) -> str:
    """Return the line of the table for the seeds of one setting."""
    first = runs[0]

    def each(key: str) -> str:
        values = [run[key] for run in runs]
        if None in values:
            return ""
        return f"{statistics.mean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"

    sums = {kind: [sum(run["kinds"][kind][index] for run in runs) for index in (0, 1)] for kind in KINDS}
    recalls = [f"{right / total:.1%} of {total // len(runs):,}" if total else "" for right, total in sums.values()]
    kept = "all" if first["keep"] is None else f"{first['keep']:,}"
    ms, most = statistics.median(run["ms"] for run in runs), max(run["MB"] for run in runs)
    cells = [f"{first['sentences']:,}", kept, str(first["epochs"]), first["regime"], each("f1"), each("far"), *recalls]
    return f"| {' | '.join([*cells, f'{ms:.1f}', f'{most:,.0f}'])} |"


def main() -> None:
    """Train every regime on every part with every seed; print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="TRAIN DEV VECTORS")
    parser.add_argument("--far", type=Path, metavar="FILE", help="text of another kind, only scored")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", type=int, nargs="+", default=[1], metavar="N", help="train on every N-th sentence")
    parser.add_argument("--keep", type=int, metavar="N", help="only the first N words of the vectors")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=REGIMES)
    parser.add_argument("--whole", action="store_true", help="train over all vectors, read or not")
    parser.add_argument("--log", type=Path, metavar="RUNS", help="file of what was measured, a line for each run")
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
    far = tagger.read_conll(arguments.far) if arguments.far else []
    read = {form for tokens, _ in [*train, *dev, *far] for token in tokens for form in (token, token.lower())}
    if arguments.keep or not arguments.whole:
        table = cut(table, arguments.keep, None if arguments.whole else read)
    done = [json.loads(line) for line in arguments.log.open()] if arguments.log and arguments.log.exists() else []
    columns = ["sentences", "vectors", "epochs", "regime", "F1 on dev", "F1 on FAR"]
    columns += [f"recall, {kind}" for kind in KINDS] + ["ms a step", "MB"]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for part in arguments.parts:
        for regime in arguments.regimes:
            runs = []
            for seed in range(arguments.seeds):
                some = train[::part]
                setting = {
                    "train": name(train_file),
                    "dev": name(dev_file),
                    "far file": arguments.far and name(arguments.far),
                    "vectors": table_file.name,
                    "part": part,
                    "sentences": len(some),
                    "keep": arguments.keep,
                    "whole": arguments.whole,
                    "epochs": arguments.epochs,
                    "regime": regime,
                    "seed": seed,
                }
                known = [run for run in done if setting.items() <= run.items()]
                runs += known or [setting | measure(some, dev, far, table, regime, seed, arguments.epochs)]
                if arguments.log and not known:
                    with arguments.log.open("a") as log:
                        log.write(json.dumps(runs[-1]) + "\n")
            print(row(runs), flush=True)


if __name__ == "__main__":
    main()
