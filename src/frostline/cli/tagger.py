"""`frostline tagger train | evaluate | predict`: parse, call, print."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frostline.tagger import Score, Sentence, Tagger

HELP = "find entities in text with an LSTM over pretrained word vectors, which keep every bit"

_TRAIN_EXAMPLES = """\
examples:
  frostline tagger train --train train.conll --dev dev.conll --vectors glove.6B.50d.txt.gz --out model
  frostline tagger train --train train.conll --dev dev.conll --vectors wiki.vec --out model --epochs 30 --seed 1

A .conll file holds one token a line, its tag (O, B-type, I-type) last, and an empty line after each sentence."""
_EVALUATE_EXAMPLES = """\
examples:
  frostline tagger evaluate model test.conll
  frostline tagger evaluate model test.conll --json"""
_PREDICT_EXAMPLES = """\
examples:
  echo "Ada Lovelace lived in London." | frostline tagger predict model
  frostline tagger predict model news.txt --json > news.jsonl

Without --json: one token, TAB, tag a line, an empty line after each sentence.
With --json: one object a line of text: tokens, tags, entities (type, start, end, text)."""
_CHUNK = 512  # lines tagged at a time: enough to batch by length, little to hold


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the three subcommands and their arguments."""
    parser.epilog = "examples:\n  frostline tagger train --help\n  frostline tagger evaluate model test.conll --json"
    actions = parser.add_subparsers(metavar="action", required=True)

    train = actions.add_parser("train", help="train, keep the best epoch, save", epilog=_TRAIN_EXAMPLES)
    train.description = "Train a tagger. Every pretrained vector stays fixed; training words without one learn theirs."
    train.add_argument("--train", metavar="F", required=True, help="sentences to learn from, CoNLL columns")
    train.add_argument("--dev", metavar="F", required=True, help="sentences that choose the best epoch, CoNLL columns")
    train.add_argument("--vectors", metavar="F", required=True, help="word vectors: .txt .vec .bin .gz .safetensors")
    train.add_argument(
        "--out", metavar="DIR", required=True, help="folder to write; a tagger already there is replaced"
    )
    train.add_argument("--epochs", metavar="N", type=_at_least(1), default=20, help="passes over --train (default 20)")
    train.add_argument("--seed", metavar="N", type=_at_least(0), default=0, help="same seed, same tagger (default 0)")
    train.set_defaults(action=_train)

    evaluate = actions.add_parser("evaluate", help="score a tagger on labelled text", epilog=_EVALUATE_EXAMPLES)
    evaluate.description = "Entity precision, recall and F1 by exact match, in all and for each type."
    evaluate.add_argument("folder", metavar="DIR", help="folder that train wrote")
    evaluate.add_argument("file", metavar="F", help="labelled sentences, CoNLL columns")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object (fractions, not percent)")
    evaluate.set_defaults(action=_evaluate)

    predict = actions.add_parser("predict", help="tag text", epilog=_PREDICT_EXAMPLES)
    predict.description = "Tag text, one sentence a line; punctuation is split off words."
    predict.add_argument("folder", metavar="DIR", help="folder that train wrote")
    predict.add_argument("file", metavar="F", nargs="?", help="UTF-8 text, one sentence a line (default: stdin)")
    predict.add_argument("--json", action="store_true", help="print JSON lines, one object for each line of text")
    predict.set_defaults(action=_predict)


def run(args: argparse.Namespace) -> int:
    """Run the chosen action; return 0, or 1 where the audit finds that a frozen entry moved."""
    action: Callable[[argparse.Namespace], int] = args.action
    return action(args)


def _at_least(low: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number < 2**63:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} up")
        return number

    return whole_number


def _train(args: argparse.Namespace) -> int:
    from frostline import tagger, vectors

    tagger.check_free(args.out)  # before the work, not after it
    train, dev = tagger.read_conll(args.train), tagger.read_conll(args.dev)
    print(f"train    {_size(train)} in {args.train}")
    print(f"dev      {_size(dev)} in {args.dev}", flush=True)
    table = vectors.load(args.vectors)
    print(f"vectors  {len(table):,} words x {table.dimension} numbers in {args.vectors}", flush=True)
    with tagger.Progress(args.epochs, sum(len(sentence.tokens) for sentence in train)) as progress:
        result = tagger.train(train, dev, table, epochs=args.epochs, seed=args.seed, watch=progress)
    result.tagger.save(args.out)
    best = f"epoch {result.best.number} of {args.epochs}, F1 on dev {100 * result.best.dev_f1:.1f} %"
    facts = {
        "train": f"{_size(train)} in {args.train}",
        "dev": f"{_size(dev)} in {args.dev}",
        "vectors": f"{len(table):,} words x {table.dimension} numbers in {args.vectors}",
        "coverage": str(result.coverage),
        "seed": str(args.seed),
        "kept": best,
    }
    tagger.leave(args.out, result, title=f"A tagger trained on {Path(args.train).name}", facts=facts)
    print(f"audit    {result.audit}")
    print(_table(result.tagger.evaluate(dev)))
    print(f"F1 on dev {100 * result.best.dev_f1:.1f} %: epoch {result.best.number}, saved in {args.out}")
    return 1 if result.audit.frozen_moved else 0


def _evaluate(args: argparse.Namespace) -> int:
    from frostline import tagger

    found = tagger.Tagger.load(args.folder).evaluate(tagger.read_conll(args.file))
    print(json.dumps(found.to_dict(), ensure_ascii=False) if args.json else _table(found))
    return 0


def _predict(args: argparse.Namespace) -> int:
    from frostline import tagger

    loaded = tagger.Tagger.load(args.folder)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # CoNLL and JSON lines are UTF-8, whatever the locale says
    lines = _text_lines(args.file)
    while chunk := list(islice(lines, _CHUNK)):
        _print_tagged(loaded, [tagger.split(line) for line in chunk], args.json)
    return 0


def _text_lines(path: str | None) -> Iterator[str]:
    from frostline.tagger.conll import decoded

    if path is None:
        yield from decoded(sys.stdin.buffer, "stdin")
    else:
        with Path(path).open("rb") as file:
            yield from decoded(file, path)


def _print_tagged(loaded: Tagger, sentences: list[list[str]], as_json: bool) -> None:
    from frostline.tagger import spans

    for tokens, tags in zip(sentences, loaded.predict(sentences), strict=True):
        if as_json:
            entities = [
                {"type": kind, "start": start, "end": end, "text": " ".join(tokens[start:end])}
                for kind, start, end in spans(tags)
            ]
            print(json.dumps({"tokens": tokens, "tags": tags, "entities": entities}, ensure_ascii=False))
        elif tokens:
            print("".join(f"{token}\t{tag}\n" for token, tag in zip(tokens, tags, strict=True)))
    sys.stdout.flush()


def _size(sentences: list[Sentence]) -> str:
    tokens = sum(len(sentence.tokens) for sentence in sentences)
    return f"{len(sentences):,} sentences, {tokens:,} tokens"


def _table(found: Score) -> str:
    width = max([len("type"), *map(len, found.per_type)])
    lines = [f"{'type':<{width}}  precision  recall      F1    gold  found"]
    for name, part in [*found.per_type.items(), ("all", found)]:
        lines.append(
            f"{name:<{width}}  {100 * part.precision:8.1f}%  {100 * part.recall:5.1f}%  {100 * part.f1:5.1f}%"
            f"  {part.gold:6,}  {part.predicted:5,}"
        )
    return "\n".join(lines)
