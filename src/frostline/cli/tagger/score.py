"""`frostline tagger score`: score the output of any tagger as conlleval does."""

from __future__ import annotations

import argparse
import json
from typing import Any

from frostline.cli.tagger.options import use_utf8_stdout

_EXAMPLES = """\
examples:
  frostline tagger score output.conll
  frostline tagger score output.conll --json

The gold tag and the predicted one are the last two columns, separated by TABs or by single spaces; an empty line ends a
sentence. Tags are B-type, I-type and O; others (E-, S-, invalid sequences) count as they do in conlleval."""


def configure(actions: argparse._SubParsersAction[Any]) -> None:
    """Add the action and its arguments."""
    score = actions.add_parser("score", help="score the output of any tagger as conlleval does", epilog=_EXAMPLES)
    score.description = (
        "Print what conlleval prints: accuracy, and precision, recall and F1 of entities by exact match."
    )
    score.add_argument("file", metavar="F", help="columns: token, ..., gold tag, predicted tag")
    score.add_argument("--json", action="store_true", help="print one JSON object, in the terms of the metric seqeval")
    score.set_defaults(action=run)


def run(args: argparse.Namespace) -> int:
    """Score and print."""
    from frostline import tagger

    use_utf8_stdout()
    found = tagger.score_file(args.file)
    print(json.dumps(found.to_dict(), ensure_ascii=False) if args.json else found.conlleval())
    return 0
