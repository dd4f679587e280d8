"""`frostline tagger predict`: parse, call, print."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frostline.tagger import Tagger

_EXAMPLES = """\
examples:
  echo "Ada Lovelace lived in London." | frostline tagger predict model
  frostline tagger predict model news.txt --json > news.jsonl

Without --json: one token, TAB, tag a line, an empty line after each sentence.
With --json: one object a line of text: tokens, tags, entities (type, start, end, text)."""
_CHUNK = 512  # lines tagged at a time: enough to batch by length, little to hold


def configure(actions: argparse._SubParsersAction[Any]) -> None:
    """Add the action and its arguments."""
    predict = actions.add_parser("predict", help="tag text", epilog=_EXAMPLES)
    predict.description = "Tag text, one sentence a line; punctuation is split off words."
    predict.add_argument("folder", metavar="DIR", help="folder that train wrote")
    predict.add_argument("file", metavar="F", nargs="?", help="UTF-8 text, one sentence a line (default: stdin)")
    predict.add_argument("--json", action="store_true", help="print JSON lines, one object for each line of text")
    predict.set_defaults(action=run)


def run(args: argparse.Namespace) -> int:
    """Tag and print."""
    from frostline import tagger

    loaded = tagger.Tagger.load(args.folder)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # CoNLL and JSON lines are UTF-8, whatever the locale says
    lines = _text_lines(args.file)
    while chunk := list(islice(lines, _CHUNK)):
        _print_tagged(loaded, [tagger.split(line) for line in chunk], args.json)
    return 0


def _text_lines(path: str | None) -> Iterator[str]:
    from frostline.tagger.conll import decoded

    if path is None:
        yield from decoded(sys.stdin.buffer, "stdin")
    else:
        with Path(path).open("rb") as file:
            yield from decoded(file, path)


def _print_tagged(loaded: Tagger, sentences: list[list[str]], as_json: bool) -> None:
    from frostline.tagger import spans

    for tokens, tags in zip(sentences, loaded.predict(sentences), strict=True):
        if as_json:
            entities = [
                {"type": kind, "start": start, "end": end, "text": " ".join(tokens[start:end])}
                for kind, start, end in spans(tags)
            ]
            print(json.dumps({"tokens": tokens, "tags": tags, "entities": entities}, ensure_ascii=False))
        elif tokens:
            print("".join(f"{token}\t{tag}\n" for token, tag in zip(tokens, tags, strict=True)))
    sys.stdout.flush()
