"""`frostline tagger predict`: parse, call, print."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from frostline.cli.tagger.arriving import Arriving
from frostline.cli.tagger.options import add_columns, add_device, columns, device, speak_utf8
from frostline.errors import FrostlineError

if TYPE_CHECKING:
    from io import BufferedIOBase

    from frostline.tagger import Tagged, Tagger

_EXAMPLES = """\
examples:
  echo "Ada Lovelace lived in London." | frostline tagger predict model
  frostline tagger predict model news.txt --json > news.jsonl
  frostline tagger predict model test.conll --tokens > output.conll && frostline tagger score output.conll

Columns: one token, TAB, tag a line, an empty line after each sentence; with --tokens, the line as it was, and the tag.
JSON: one object a line of text: text, tokens, tags, offsets and entities (type, text, start, end, token_start,
token_end). start and end count characters (code points) of the line; text[start:end] is the entity as written.
Words are split at blanks, punctuation off their ends, n't 's 'm 'd 're 've 'll off their backs; URLs, @names, #tags,
smileys and abbreviations such as U.S. stay whole. Each line is answered as soon as no other is waiting."""


def configure(actions: argparse._SubParsersAction[Any]) -> None:
    """Add the action and its arguments."""
    predict = actions.add_parser("predict", help="tag text", epilog=_EXAMPLES)
    predict.description = "Tag text, one sentence a line; punctuation is split off words."
    predict.add_argument("folder", metavar="DIR", help="folder that train wrote")
    predict.add_argument("file", metavar="F", nargs="?", help="UTF-8 text, one sentence a line (default: stdin)")
    predict.add_argument("--tokens", action="store_true", help="the text is CoNLL columns: one token a line, not split")
    predict.add_argument(
        "--scheme", choices=("IOB1", "IOB2", "BIOES", "BILOU"), default="IOB2", help="of the tags (default IOB2)"
    )
    shown = predict.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print JSON lines, one object for each line of text")
    shown.add_argument("--color", action="store_true", help="print the text, its entities in colour")
    add_device(predict)
    add_columns(predict, tag=False)
    predict.set_defaults(action=run)


def run(args: argparse.Namespace) -> int:
    """Tag and print."""
    from frostline import tagger

    if not args.tokens and columns(args) != tagger.Columns():
        raise FrostlineError("--token-column, --separator and --comments are for --tokens: plain text has no columns.")
    loaded = tagger.Tagger.load(args.folder)
    loaded.model.to(device(args))
    speak_utf8()
    types = sorted({tag[2:] for tag in loaded.tags if tag != "O"})
    with ExitStack() as stack:
        if args.file is None and sys.stdin is None:
            raise FrostlineError("stdin is closed, so there is no text. Name a file.")
        opened = sys.stdin.buffer if args.file is None else stack.enter_context(Path(args.file).open("rb"))
        file = Arriving(cast("BufferedIOBase", opened))
        for lines, tagged in (_tagged_tokens if args.tokens else _tagged_text)(loaded, file, args):
            if args.json:
                print(json.dumps(tagged.to_dict(args.scheme), ensure_ascii=False))
            elif args.color:
                print(tagged.colored(types))
            elif lines:
                print("".join(f"{line}{tag}\n" for line, tag in zip(lines, tagged.written(args.scheme), strict=True)))
    return 0


def _tagged_text(loaded: Tagger, file: Arriving, args: argparse.Namespace) -> Iterator[tuple[list[str], Tagged]]:
    """Yield, for each line of text, what stands before each tag in columns, and the tagged text."""
    from frostline.tagger import Tagged, tokenize
    from frostline.tagger.data.conll import decoded

    for chunk in file.chunks(decoded(file, args.file or "stdin")):
        tokens = [tokenize(line) for line in chunk]
        tags = loaded.predict([[token.text for token in sentence] for sentence in tokens])
        for line, sentence, found in zip(chunk, tokens, tags, strict=True):
            yield [f"{token.text}\t" for token in sentence], Tagged(line, sentence, found)
        sys.stdout.flush()


def _tagged_tokens(loaded: Tagger, file: Arriving, args: argparse.Namespace) -> Iterator[tuple[list[str], Tagged]]:
    """Yield the same for each sentence in columns."""
    from frostline.tagger import Tagged
    from frostline.tagger.data.conll import decoded, unlabelled

    name = args.file or "stdin"
    for chunk in file.chunks(unlabelled(decoded(file, name), name, columns(args))):
        tags = loaded.predict([[token for _, token in sentence] for sentence in chunk])
        for sentence, found in zip(chunk, tags, strict=True):
            yield [line for line, _ in sentence], Tagged.of_tokens([token for _, token in sentence], found)
        sys.stdout.flush()
