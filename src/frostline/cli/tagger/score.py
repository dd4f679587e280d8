"""`frostline tagger score`: score the output of any tagger as conlleval does."""

from __future__ import annotations

import argparse
import json
from typing import Any

from frostline.cli.tagger.options import add_columns, columns, use_utf8_stdout

_EXAMPLES = """\
examples:
  frostline tagger score output.conll
  frostline tagger score output.conll --json
  frostline tagger score output.conll --tag-column 3

The predicted tag is the last column, the gold one the last but one or that of --tag-column, separated by TABs or by
single spaces; an empty line ends a sentence. Tags are B-type, I-type and O; others (E-, S-, invalid sequences) count as
they do in conlleval. A column of which most are no tags is refused."""


def configure(actions: argparse._SubParsersAction[Any]) -> None:
    """Add the action and its arguments."""
    score = actions.add_parser("score", help="score the output of any tagger as conlleval does", epilog=_EXAMPLES)
    score.description = (
        "Print what conlleval prints: accuracy, and precision, recall and F1 of entities by exact match."
    )
    score.add_argument("file", metavar="F", help="columns: token, ..., gold tag, predicted tag")
    score.add_argument("--json", action="store_true", help="print one JSON object, in the terms of the metric seqeval")
    add_columns(score, tag="of the gold tag (default -2, the last but one; the last is the prediction)")
    score.set_defaults(action=run)


def run(args: argparse.Namespace) -> int:
    """Score and print."""
    from frostline import tagger

    use_utf8_stdout()
    found = tagger.score_file(args.file, columns(args, tag=-2))
    print(json.dumps(found.to_dict(), ensure_ascii=False) if args.json else found.conlleval())
    return 0
