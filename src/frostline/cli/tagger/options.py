"""Arguments that several actions of the tagger share, and stdout in UTF-8."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable
from dataclasses import replace
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


def add_columns(parser: argparse.ArgumentParser, *, tag: str | None = "likewise (default -1)") -> None:
    """Add the options that say where a file keeps tokens and tags; `tag` is the help of the latter, None: no tags."""
    group = parser.add_argument_group("columns")
    group.add_argument(
        "--format",
        choices=("columns", "conllu"),
        help="conllu: CoNLL-U or Universal NER's IOB2, with ids, comments and the token second; the tag is third, or "
        "NER= in the last of ten columns (default: found by the first sentence)",
    )
    group.add_argument("--token-column", metavar="N", type=_column, help="1 is the first, -1 the last (default 1)")
    if tag is None:
        parser.set_defaults(tag_column=None)
    else:
        group.add_argument("--tag-column", metavar="N", type=_column, help=tag)
    group.add_argument(
        "--separator",
        metavar="S",
        type=_characters,
        help=r"between columns, such as , or \t (default: TAB where a line has one, else spaces)",
    )
    group.add_argument(
        "--comments", metavar="PREFIX", type=_characters, help="skip lines that begin with this (default: none are)"
    )


def columns(args: argparse.Namespace, tag: int = -1) -> Columns | None:
    """Return the columns that the options of `add_columns` name; None if there are none, and the file is to tell.

    `tag` is the column of the tag where none is named.
    """
    from frostline.tagger import CONLLU, Columns

    given = {"token": args.token_column, "tag": args.tag_column, "separator": args.separator, "comments": args.comments}
    named = {name: value for name, value in given.items() if value is not None}
    if args.format is None and not named:
        return None
    return replace(CONLLU if args.format == "conllu" else Columns(tag=tag), **named)


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
