"""`frostline tagger predict`: tag text, and print columns, JSON or colours."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from frostline.cli.tagger.options import add_columns, add_device, columns, device, use_utf8_stdout
from frostline.errors import FrostlineError
from frostline.files import standard_input

if TYPE_CHECKING:
    from frostline.tagger import Tagged, Tagger

_EXAMPLES = """\
examples:
  echo "Ada Lovelace lived in London." | frostline tagger predict model
  frostline tagger predict model news.txt --json > news.jsonl
  frostline tagger predict model test.conll --tokens > output.conll && frostline tagger score output.conll

Columns: one token, TAB, tag a line, an empty line after each sentence; with --tokens, the line as it was, and the tag.
JSON: one object a line of text: text, tokens, tags, offsets and entities (type, text, start, end, token_start,
token_end). start and end count characters (code points) of the line; text[start:end] is the entity as written.
Words are split at whitespace; punctuation and n't 's 'm 'd 're 've 'll are split off; URLs, @names, #tags, smileys and
abbreviations such as U.S. stay whole. Standard input is answered line by line; a file is read in batches, which is two
to three times as fast."""
_BATCH = 512  # sentences of a file in memory at a time
Item = TypeVar("Item")


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
    add_columns(predict, tag=None)
    predict.set_defaults(action=run)


def run(args: argparse.Namespace) -> int:
    """Tag and print."""
    from frostline import tagger
    from frostline.tagger.data.conll import decode_lines, read_tokens
    from frostline.tagger.data.layout import check_text

    if not args.tokens and columns(args) is not None:
        raise FrostlineError(
            "--format, --token-column, --separator and --comments are for --tokens: plain text has no columns."
        )
    loaded = tagger.Tagger.load(args.folder)
    loaded.model.to(device(args))
    use_utf8_stdout()
    types = sorted({tag[2:] for tag in loaded.tags if tag != "O"})
    with ExitStack() as stack:
        file = standard_input() if args.file is None else stack.enter_context(Path(args.file).open("rb"))
        size = 1 if args.file is None else _BATCH  # whoever writes a line to a pipe and waits gets its answer
        name = args.file or "stdin"
        lines = decode_lines(file, name)
        if args.tokens:
            sentences = read_tokens(lines, name, columns(args))
            answers = (_tag_columns(loaded, batch) for batch in _batches(sentences, size))
        else:
            answers = (_tag_text(loaded, batch) for batch in _batches(check_text(lines, name), size))
        for answer in answers:
            for prefixes, sentence in answer:
                _print(prefixes, sentence, types, args)
            sys.stdout.flush()
    return 0


def _print(prefixes: list[str], sentence: Tagged, types: list[str], args: argparse.Namespace) -> None:
    """Print a sentence; `prefixes` are its columns before the tag, one string a token."""
    if args.json:
        print(json.dumps(sentence.to_dict(args.scheme), ensure_ascii=False))
    elif args.color:
        print(sentence.colored(types))
    elif prefixes:
        print("".join(f"{prefix}{tag}\n" for prefix, tag in zip(prefixes, sentence.tags_in(args.scheme), strict=True)))


def _batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while batch := list(islice(items, size)):
        yield batch


def _tag_text(loaded: Tagger, lines: list[str]) -> list[tuple[list[str], Tagged]]:
    """Return for each line of text what `_print` takes."""
    from frostline.tagger import Tagged, tokenize

    tokens = [tokenize(line) for line in lines]
    tags = loaded.predict([[token.text for token in sentence] for sentence in tokens])
    return [
        ([f"{token.text}\t" for token in sentence], Tagged(line, sentence, found))
        for line, sentence, found in zip(lines, tokens, tags, strict=True)
    ]


def _tag_columns(loaded: Tagger, sentences: list[list[tuple[str, str]]]) -> list[tuple[list[str], Tagged]]:
    """Return for each sentence in columns, as (line, token) pairs, what `_print` takes."""
    from frostline.tagger import Tagged

    tokens = [[token for _, token in sentence] for sentence in sentences]
    return [
        ([line for line, _ in sentence], Tagged.from_tokens(words, tags))
        for sentence, words, tags in zip(sentences, tokens, loaded.predict(tokens), strict=True)
    ]
