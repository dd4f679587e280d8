"""`frostline tagger evaluate`: parse, call, print."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from frostline.cli.tagger.options import add_columns, add_device, at_least, columns, device, speak_utf8

if TYPE_CHECKING:
    from frostline.tagger import Errors

_EXAMPLES = """\
examples:
  frostline tagger evaluate model test.conll
  frostline tagger evaluate model test.conll --errors 20 --confusion confusion.png
  frostline tagger evaluate model test.conll --json

Surface F1 counts each (type, text) once, however often it occurs. JSON: named as by evaluate's metric seqeval, and
surface_precision, surface_recall, surface_f1."""
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
    evaluate.add_argument("--confusion", metavar="FILE", help="draw which type is taken for which: .png .svg .pdf")
    add_device(evaluate)
    add_columns(evaluate)
    evaluate.set_defaults(action=run)


def run(args: argparse.Namespace) -> int:
    """Score and print."""
    from frostline import tagger

    speak_utf8()
    loaded = tagger.Tagger.load(args.folder)
    loaded.model.to(device(args))
    sentences = tagger.read_conll(args.file, columns(args))
    tokens, gold = [sentence.tokens for sentence in sentences], [sentence.tags for sentence in sentences]
    predicted = loaded.predict(tokens)
    found, surface = tagger.score(gold, predicted), tagger.surface_score(tokens, gold, predicted)
    for kind, times in tagger.unknown_types(loaded.tags, gold).items():
        print(f"warning: {times:,} of type {kind!r}, which this tagger does not know; all are missed", file=sys.stderr)
    errors = tagger.analyse(tokens, gold, predicted)
    if args.confusion is not None:  # first: what cannot be drawn is refused before anything is printed
        tagger.draw_confusion(errors, args.confusion)
    if args.json:
        of_surface = {f"surface_{name}": getattr(surface, name) for name in ("precision", "recall", "f1")}
        print(json.dumps(found.to_dict() | of_surface, ensure_ascii=False))
    else:
        print(found)
        print(
            f"surface F1 {100 * surface.f1:.1f}% (precision {100 * surface.precision:.1f}%, recall "
            f"{100 * surface.recall:.1f}%): {surface.gold:,} different names, {surface.predicted:,} found"
        )
    if args.errors:
        _print_errors(errors, args.errors)
    return 0


def _print_errors(errors: Errors, most: int) -> None:
    kinds = ", ".join(f"{times:,} {kind}" for kind, times in errors.kinds.most_common())
    print(f"\n{errors.kinds.total():,} errors" + (f": {kinds}" if kinds else ""))
    if kinds:
        print("\nmost frequent")
        for times, pair in errors.frequent(most):
            print(_cut(f"{times:>6,}  {pair}"))
        print("\nlongest (tokens)")
        for pair in errors.longest(most):
            print(_cut(f"{pair.tokens:>6,}  {pair}"))


def _cut(line: str) -> str:
    return line if len(line) <= _WIDTH else line[: _WIDTH - 3] + "..."
