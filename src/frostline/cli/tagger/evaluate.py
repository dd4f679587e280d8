"""`frostline tagger evaluate`: score a tagger on labelled text, and list its errors."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline.cli.tagger.options import add_columns, add_device, at_least, columns, device, use_utf8_stdout
from frostline.printing import shortened

if TYPE_CHECKING:
    from frostline.tagger import Errors, Score, Sentence

_EXAMPLES = """\
examples:
  frostline tagger evaluate model test.conll
  frostline tagger evaluate model test.conll --errors 20
  frostline tagger evaluate model test.conll --run-folder run && frostline report run
  frostline tagger evaluate model test.conll --json

Surface F1 counts each (type, text) once, however often it occurs. JSON has the names of the metric seqeval of the
library evaluate, and surface_precision, surface_recall, surface_f1."""
_WIDTH = 110  # of a line about an error


def configure(actions: argparse._SubParsersAction[Any]) -> None:
    """Add the action and its arguments."""
    evaluate = actions.add_parser("evaluate", help="score a tagger on labelled text", epilog=_EXAMPLES)
    evaluate.description = "Entity precision, recall and F1 by exact match, in all and for each type."
    evaluate.add_argument("folder", metavar="DIR", help="folder that train wrote")
    evaluate.add_argument("file", metavar="F", help="labelled sentences, CoNLL columns")
    shown = evaluate.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print one JSON object (fractions, not percent)")
    shown.add_argument("--errors", metavar="N", type=at_least(1), help="the N most frequent errors, and the N longest")
    evaluate.add_argument(
        "--run-folder",
        metavar="DIR",
        help="write scores by type, errors and confusion into this run folder, for frostline report",
    )
    add_device(evaluate)
    add_columns(evaluate)
    evaluate.set_defaults(action=run)


def run(args: argparse.Namespace) -> int:
    """Score and print."""
    from frostline import tagger
    from frostline.tagger.scoring.error_analysis import unknown_types

    use_utf8_stdout()
    loaded = tagger.Tagger.load(args.folder)
    loaded.model.to(device(args))
    sentences = tagger.read_conll(args.file, columns(args))
    tokens, gold = [sentence.tokens for sentence in sentences], [sentence.tags for sentence in sentences]
    predicted = loaded.predict(tokens)
    found, surface = tagger.score(gold, predicted), tagger.surface_score(tokens, gold, predicted)
    for kind, times in unknown_types(loaded.tags, gold).items():
        print(f"warning: {times:,} of type {kind!r}, which this tagger does not know; all are missed", file=sys.stderr)
    errors = tagger.analyse(tokens, gold, predicted)
    if args.run_folder is not None:  # before anything is printed, so that a folder that is not writable is one line
        _write_scores(args, sentences, predicted, found)
    if args.json:
        surface_shares = {f"surface_{name}": getattr(surface, name) for name in ("precision", "recall", "f1")}
        print(json.dumps(found.to_dict() | surface_shares, ensure_ascii=False))
    else:
        print(found)
        print(
            f"surface F1 {100 * surface.f1:.1f}% (precision {100 * surface.precision:.1f}%, recall "
            f"{100 * surface.recall:.1f}%): {surface.gold:,} different names, {surface.predicted:,} found"
        )
    if args.errors:
        _print_errors(errors, args.errors)
    return 0


def _write_scores(
    args: argparse.Namespace, sentences: list[Sentence], predicted: list[list[str]], score: Score
) -> None:
    from frostline.record import describe_run
    from frostline.record.valid import PLAN
    from frostline.tagger.scoring.score_table import scored

    name = Path(args.file).name
    about: dict[str, Any] = {
        "title": f"A tagger evaluated on {name}",
        "facts": {"tagger": args.folder, "text": args.file, "F1": f"{100 * score.f1:.1f} %"},
    }
    if (Path(args.run_folder) / PLAN).exists():  # the folder of a training, whose own title and facts stay
        about = {}
    describe_run(args.run_folder, **scored(name, sentences, predicted), **about)


def _print_errors(errors: Errors, most: int) -> None:
    kinds = ", ".join(f"{times:,} {kind}" for kind, times in errors.kinds.most_common())
    print(f"\n{errors.kinds.total():,} errors" + (f": {kinds}" if kinds else ""))
    if kinds:
        print("\nmost frequent")
        for times, pair in errors.frequent(most):
            print(shortened(f"{times:>6,}  {pair}", _WIDTH))
        print("\nlongest (tokens)")
        for pair in errors.longest(most):
            print(shortened(f"{pair.tokens:>6,}  {pair}", _WIDTH))
