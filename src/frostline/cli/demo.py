"""`frostline demo`: train, audit and draw a real model on text that is on this machine already."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

HELP = "train, audit and draw a real model on text that is on this machine already, in two to three minutes"

_EXAMPLES = """\
examples:
  frostline demo
  frostline demo --out story

It reads the documentation of the installed Python, trains word vectors on one part of it, then a tagger that finds
code terms in the other part, in three regimes: missing words learn, all words frozen, all words learn. It prints what
learned, what did not, and the scores of each regime, and writes report.html, two pictures and results.json.
Needs the extra: pip install 'frostline[demo]'."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("demo-run"), help="folder to write to (default demo-run)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo; return 0, or 1 if the audit finds that a frozen value moved."""
    from frostline.demo.story import tell

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a word that the terminal cannot print must not end the demo
    results = tell(args.out)
    return 1 if results["audit"]["frozen_moved"] else 0
