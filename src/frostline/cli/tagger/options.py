"""Arguments that several actions of the tagger share, and stdout in UTF-8."""

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
    """Return a parser of whole numbers from `low` to `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value > most:
            raise argparse.ArgumentTypeError(f"{text!r} is too large. Pass a whole number from {low} to {most}.")
        if value < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {low}")
        return value

    return parse


def use_utf8_stdout() -> None:
    """Write UTF-8 to stdout whatever the locale says, since columns and JSON are UTF-8.

    File names that are not UTF-8 are written byte by byte.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option --device."""
    parser.add_argument("--device", metavar="NAME", default="cpu", help="where to compute, such as cuda (default cpu)")


def device(args: argparse.Namespace) -> torch.device:
    """Return the device of --device; with "cuda" each process of torchrun gets a GPU of its own.

    Raises:
        FrostlineError: The device is not available.
    """
    from frostline.tagger.config import check_device

    local_rank = os.environ.get("LOCAL_RANK", "0")  # set by torchrun
    return check_device(f"cuda:{local_rank}" if args.device == "cuda" else args.device)


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
        help=r"between columns, such as , or \t (default: TAB where a line has one, else spaces)",
    )
    group.add_argument(
        "--comments", metavar="PREFIX", type=_characters, help="skip lines that begin with this (default: none are)"
    )


def columns(args: argparse.Namespace) -> Columns:
    """Return the columns that the options of `add_columns` name."""
    from frostline.tagger import Columns

    return Columns(args.token_column, args.tag_column, args.separator, args.comments)


def _column(text: str) -> int:
    try:
        column = int(text)
    except ValueError:
        column = 0
    if not column:
        raise argparse.ArgumentTypeError(f"{text!r} is not a column. The first is 1, the last -1.")
    return column


def _characters(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("empty. Give at least one character, or leave the option out.")
    return text.replace("\\t", "\t")
