"""`frostline tagger evaluate`: parse, call, print."""

from __future__ import annotations

import argparse
import json
from typing import Any

from frostline.cli.tagger.options import add_columns, columns

_EXAMPLES = """\
examples:
  frostline tagger evaluate model test.conll
  frostline tagger evaluate model test.conll --json"""


def configure(actions: argparse._SubParsersAction[Any]) -> None:
    """Add the action and its arguments."""
    evaluate = actions.add_parser("evaluate", help="score a tagger on labelled text", epilog=_EXAMPLES)
    evaluate.description = "Entity precision, recall and F1 by exact match, in all and for each type."
    evaluate.add_argument("folder", metavar="DIR", help="folder that train wrote")
    evaluate.add_argument("file", metavar="F", help="labelled sentences, CoNLL columns")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object (fractions, not percent)")
    add_columns(evaluate)
    evaluate.set_defaults(action=run)


def run(args: argparse.Namespace) -> int:
    """Score and print."""
    from frostline import tagger

    found = tagger.Tagger.load(args.folder).evaluate(tagger.read_conll(args.file, columns(args)))
    print(json.dumps(found.to_dict(), ensure_ascii=False) if args.json else found)
    return 0
