"""What several actions of the tagger read from the command line."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from frostline.tagger import Columns


def at_least(low: int, most: int = 2**63 - 1) -> Callable[[str], int]:
    """Return a reader of whole numbers from `low` up, to `most`."""

    def whole_number(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if number > most:
            raise argparse.ArgumentTypeError(f"{text!r} is too many. Pass a whole number from {low} to {most}.")
        if number < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} up")
        return number

    return whole_number


def speak_utf8() -> None:
    """Write UTF-8 to stdout whatever the locale says: columns and JSON are UTF-8, and names have any letters.

    Names of files that are not UTF-8 are written as they are.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where to compute."""
    parser.add_argument("--device", metavar="NAME", default="cpu", help="where to compute, such as cuda (default cpu)")


def device(args: argparse.Namespace) -> torch.device:
    """Return what the option of `add_device` says; of several processes on "cuda" each has a GPU of its own.

    Raises:
        FrostlineError: There is no such device here.
    """
    from frostline.tagger.config import usable

    own = os.environ.get("LOCAL_RANK", "0")  # set by torchrun
    return usable(f"cuda:{own}" if args.device == "cuda" else args.device)


def add_columns(parser: argparse.ArgumentParser, *, tag: bool = True) -> None:
    """Add the options that say where a file keeps tokens and, unless `tag` is False, tags."""
    group = parser.add_argument_group("columns")
    group.add_argument(
        "--token-column", metavar="N", type=_column, default=1, help="1 is the first, -1 the last (default 1)"
    )
    if not tag:
        parser.set_defaults(tag_column=-1)
    else:
        group.add_argument("--tag-column", metavar="N", type=_column, default=-1, help="likewise (default -1)")
    group.add_argument(
        "--separator",
        metavar="S",
        type=_characters,
        help=r"between columns, such as , or \t (default: TAB where a line has one, else blanks)",
    )
    group.add_argument(
        "--comments", metavar="PREFIX", type=_characters, help="skip lines that begin with this (default: none are)"
    )


def columns(args: argparse.Namespace) -> Columns:
    """Return what the options of `add_columns` say."""
    from frostline.tagger import Columns

    return Columns(args.token_column, args.tag_column, args.separator, args.comments)


def _column(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not number:
        raise argparse.ArgumentTypeError(f"{text!r} is no column. The first is 1, the last -1.")
    return number


def _characters(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("empty. Give at least one character, or leave the option out.")
    return text.replace("\\t", "\t")
