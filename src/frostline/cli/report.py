"""`frostline report`: one page of HTML from a run folder, or files for TensorBoard."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "one page of HTML from a run folder: what learned, curves, rows that moved, audit"

_EXAMPLES = """\
examples:
  frostline report demo-run
  frostline report model -o page.html
  frostline report runs/first --tensorboard logs/first

A run folder is written by fl.Recorder, `frostline tagger train --out DIR` or `frostline demo`. The page is one file
that needs no network. Needs the extra: pip install 'frostline[report]'."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EXAMPLES
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="the run folder")
    parser.add_argument("-o", dest="out", metavar="FILE", type=Path, help="the page (default RUN/report.html)")
    parser.add_argument(
        "--tensorboard", metavar="DIR", type=Path, help="write files for TensorBoard there instead of a page"
    )


def run(args: argparse.Namespace) -> int:
    """Write the page or the files for TensorBoard and print the path; return 0."""
    from frostline.report import write_page, write_tensorboard

    if args.tensorboard is not None:
        write_tensorboard(args.run_folder, args.tensorboard)
        print(f"tensorboard --logdir {args.tensorboard}")
    if args.tensorboard is None or args.out is not None:
        print(write_page(args.run_folder, args.out or args.run_folder / "report.html"))
    return 0
