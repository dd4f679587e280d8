"""`frostline tagger train | evaluate | predict | score`: each action is a file beside this one."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from frostline.cli.tagger import evaluate, predict, score, train

HELP = "find entities in text with an LSTM over pretrained word vectors, which keep every bit"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their arguments."""
    parser.epilog = "examples:\n  frostline tagger train --help\n  frostline tagger evaluate model test.conll --json"
    actions = parser.add_subparsers(metavar="action", required=True)
    for action in (train, evaluate, predict, score):
        action.configure(actions)


def run(args: argparse.Namespace) -> int:
    """Run the chosen action; return 0, or 1 where the audit finds that a frozen entry moved."""
    action: Callable[[argparse.Namespace], int] = args.action
    return action(args)
