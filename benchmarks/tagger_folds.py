"""Which settings of the tagger generalise? Nested folds of the training sentences decide; nothing else is looked at.

The sentences are cut into K blocks, in the order of the file, as neighbours are alike. For each setting and each two
blocks, K - 2 blocks train, and each epoch is scored on both of the others. So for each block d, held out:
    inner   the K - 1 runs that held d out as well as another block c, each at the epoch with the best F1 on c: their F1
            on c, mean. By it the setting and the bias of O are chosen.
    outer   the same runs at the same epochs: F1 on d, which chose nothing.
*Chosen* is the mean over d of the outer F1 of the setting whose inner F1 is the best: what choosing by folds brings.

Run:    python benchmarks/tagger_folds.py TRAIN VECTORS --log RUNS.jsonl [--auxiliary F ...] [--settings NAME ...]
            [--blocks K] [--seeds N] [--epochs N]
--log adds a line for each finished training; those that the file already has are not run again. With --quick the
sentences and vectors are made up and small.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from frostline import tagger, vectors
from frostline.tagger.data.batches import encode, group_by_length, pad
from tagger_regimes import cut
from tagger_speed import made_up

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "dropout .35": {"dropout": 0.35},
    "dropout .5": {"dropout": 0.5},
    "characters": {"char_filters": 30},
    "state .25": {"dropout_state": 0.25},
    "hidden 100": {"hidden": 100},
    "decay .1": {"weight_decay": 0.1},
    "rate .001": {"learning_rate": 1e-3},
    "all learn": {"learn": "all"},
    "none learns": {"learn": "none"},
    "unk 2": {"unk_dropout": 2.0},
}
BIASES = (0.0, 0.25, 0.5, 0.75)


def counts(score: tagger.Score) -> tuple[int, int, int]:
    """Return what F1 is made of."""
    return score.correct, score.predicted, score.gold


def f1(correct: int, predicted: int, gold: int) -> float:
    """Return F1 in percent."""
    return 200 * correct / max(1, predicted + gold)


def tags_by_bias(own: tagger.Tagger, sentences: Sequence[Sequence[str]]) -> list[list[list[str]]]:
    """Return the tags of each sentence for each bias of O: [bias][sentence], the network run once."""
    found: list[list[list[str]]] = [[[] for _ in sentences] for _ in BIASES]
    characters, crf = own.model.char_cnn is not None, own.model.head.crf
    assert crf is not None
    for group in group_by_length([len(tokens) for tokens in sentences], 64, 16_384, 80):
        batch = pad([encode(sentences[index], own.vocabulary, characters=characters) for index in group])
        scores = own.model(batch.rows, batch.shapes, batch.lengths, batch.spellings)
        for bias, of_bias in zip(BIASES, found, strict=True):
            lowered = scores - torch.tensor([bias] + [0.0] * (len(own.tags) - 1))
            for index, tags in zip(group, crf.decode(lowered, batch.lengths).tolist(), strict=True):
                of_bias[index] = [own.tags[tag] for tag in tags[: len(sentences[index])]]
    return found


@contextmanager
def scored(parts: Sequence[Sequence[tagger.Sentence]]) -> Iterator[list[Any]]:
    """Record counts for each epoch, bias of O and part: [epoch][bias][part], wherever a tagger evaluates itself."""
    found: list[Any] = []

    @torch.no_grad()
    def evaluate(own: tagger.Tagger, sentences: Any) -> tagger.Score:
        own.model.eval()
        row = []
        for tags in tags_by_bias(own, [tokens for part in parts for tokens, _ in part]):
            ends = [0, len(parts[0]), len(parts[0]) + len(parts[1])]
            of_parts = [tags[start:end] for start, end in pairwise(ends)]
            row.append([counts(tagger.score([g for _, g in part], t)) for part, t in zip(parts, of_parts, strict=True)])
        own.model.train()
        found.append(row)
        return tagger.score([["O"]], [["O"]])

    with mock.patch.object(tagger.Tagger, "evaluate", evaluate):
        yield found


def measure(
    blocks: Sequence[Sequence[tagger.Sentence]], held: tuple[int, int], table: Any, auxiliary: Any, run: dict[str, Any]
) -> list[Any]:
    """Train on all blocks but those `held`; return counts by epoch, bias and held block."""
    setting = SETTINGS[run["setting"]].copy()
    learn = setting.pop("learn", "missing")
    train = [sentence for index, block in enumerate(blocks) if index not in held for sentence in block]
    config = tagger.TaggerConfig(**{"o_bias": 0.0} | setting)
    parts = [blocks[index] for index in held]
    with scored(parts) as found:
        tagger.train(
            train,
            parts[0],
            table,
            auxiliary=[auxiliary] if auxiliary else [],
            learn=learn,
            epochs=run["epochs"],
            seed=run["seed"],
            config=config,
        )
    return found[: run["epochs"]]


def folds(runs: Sequence[dict[str, Any]], bias: int, blocks: int) -> list[tuple[float, float]]:
    """Return for each block, held out, (inner F1, outer F1) of one setting and bias: means over its runs."""
    found = []
    for d in range(blocks):
        inner, outer = [], []
        for run in runs:
            if d not in run["held"]:
                continue
            own, other = run["held"].index(d), 1 - run["held"].index(d)
            best = max(run["counts"], key=lambda epoch: f1(*epoch[bias][other]))
            inner.append(f1(*best[bias][other]))
            outer.append(f1(*best[bias][own]))
        found.append((statistics.mean(inner), statistics.mean(outer)))
    return found


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation."""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def table_of(log: Sequence[dict[str, Any]], names: Sequence[str], blocks: int) -> None:
    """Print inner and outer F1 of each setting and bias, and what choosing by the inner one brings."""
    print("| setting | o_bias | inner F1 | outer F1, mean ± deviation of the blocks | each block |\n|" + " --- |" * 5)
    everything: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for name in names:
        runs = [run for run in log if run["setting"] == name]
        for index, bias in enumerate(BIASES):
            everything[name, bias] = found = folds(runs, index, blocks)
            inners, outers = [pair[0] for pair in found], [pair[1] for pair in found]
            cells = [name, str(bias), f"{statistics.mean(inners):.1f}", spread(outers)]
            print(f"| {' | '.join([*cells, ', '.join(f'{value:.1f}' for value in outers)])} |")
    chosen = []
    for d in range(blocks):
        best = max(everything, key=lambda key: everything[key][d][0])
        chosen.append(everything[best][d][1])
        inner, outer = everything[best][d]
        print(f"block {d + 1}: chosen {best[0]}, o_bias {best[1]}: inner {inner:.1f}, outer {outer:.1f}")
    print(f"chosen by nested folds: {spread(chosen)}")


def main() -> None:
    """Run what the log lacks; print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="TRAIN VECTORS")
    parser.add_argument("--auxiliary", type=Path, nargs="+", default=[], metavar="F")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--blocks", type=int, default=4, metavar="K")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--log", type=Path, metavar="RUNS")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if len(args.files) != (0 if args.quick else 2):
        parser.error("two files are needed: TRAIN and VECTORS; or none with --quick")
    with tempfile.TemporaryDirectory() as folder:
        train_file, _, table_file = made_up(Path(folder)) if args.quick else (args.files[0], None, args.files[1])
        train = tagger.read_conll(train_file)
        table = vectors.load(table_file, cache=not args.quick)
    if args.quick:
        args.epochs, args.blocks, args.settings = 2, 3, ["defaults"]
    auxiliary = [sentence for file in args.auxiliary for sentence in tagger.read_conll(file)]
    read = {form for tokens, _ in [*train, *auxiliary] for token in tokens for form in (token, token.lower())}
    table = cut(table, None, read)  # no other row is ever read
    size = -(-len(train) // args.blocks)
    blocks = [train[start : start + size] for start in range(0, len(train), size)]
    done = [json.loads(line) for line in args.log.open()] if args.log and args.log.exists() else []
    log = []
    for name in args.settings:
        for seed in range(args.seeds):
            for held in combinations(range(args.blocks), 2):
                run = {"setting": name, "auxiliary": bool(auxiliary), "seed": seed, "epochs": args.epochs}
                run |= {"blocks": args.blocks, "held": list(held)}
                known = [old for old in done if run.items() <= old.items()]
                log += known or [run | {"counts": measure(blocks, held, table, auxiliary, run)}]
                if args.log and not known:
                    with args.log.open("a") as file:
                        file.write(json.dumps(log[-1]) + "\n")
    table_of(log, args.settings, args.blocks)


if __name__ == "__main__":
    main()
