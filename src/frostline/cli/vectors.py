"""`frostline vectors info | convert | cover | near`: inspect and convert files of word vectors."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

HELP = "inspect files of word vectors, convert them, see which words they cover"

_INFO_EXAMPLES = """\
examples:
  frostline vectors info glove.6B.50d.txt.gz
  frostline vectors info wiki.en.vec --json"""
_CONVERT_EXAMPLES = """\
examples:
  frostline vectors convert glove.6B.50d.txt.gz glove.safetensors
  frostline vectors convert GoogleNews-vectors-negative300.bin.gz news.safetensors"""
_COVER_EXAMPLES = """\
examples:
  frostline vectors cover glove.6B.50d.txt.gz text.txt --lowercase
  cut -f1 train.conll | frostline vectors cover glove.6B.50d.txt.gz --json

Words are separated by whitespace."""
_NEAR_EXAMPLES = """\
examples:
  frostline vectors near glove.6B.50d.txt.gz frost
  frostline vectors near glove.6B.50d.txt.gz frost --count 3 --json"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the four subcommands and their arguments."""
    parser.epilog = "examples:\n  frostline vectors info glove.6B.50d.txt.gz\n  frostline vectors near wiki.vec frost"
    actions = parser.add_subparsers(metavar="action", required=True)

    info = actions.add_parser("info", help="how many words, which dimension", epilog=_INFO_EXAMPLES)
    info.description = "Read a file of word vectors and print what is in it. An error names the line."
    info.set_defaults(action=_info)

    convert = actions.add_parser(
        "convert", help="write .safetensors, which opens in milliseconds", epilog=_CONVERT_EXAMPLES
    )
    convert.description = "Write word vectors as .safetensors: one file, opened by memory mapping, every bit kept."
    convert.set_defaults(action=_convert)

    cover = actions.add_parser("cover", help="which words of a text have a vector", epilog=_COVER_EXAMPLES)
    cover.description = "Count the words of a text that have a vector, and list the most frequent ones that have none."
    cover.set_defaults(action=_cover)

    near = actions.add_parser("near", help="the words nearest to a word", epilog=_NEAR_EXAMPLES)
    near.description = "List the words whose vectors have the highest cosine similarity with a word's."
    near.set_defaults(action=_near)

    for action in (info, convert, cover, near):
        action.add_argument("file", metavar="F", help="word vectors: .txt .vec .bin .gz .safetensors")
    convert.add_argument("out", metavar="OUT", help="file to write, named .safetensors")
    cover.add_argument("text", metavar="TEXT", nargs="?", help="UTF-8 text (default: stdin)")
    cover.add_argument("--lowercase", action="store_true", help="look a missing word up again in lower case")
    near.add_argument("word", metavar="WORD", help="a word that has a vector")
    near.add_argument("--count", metavar="N", type=int, default=10, help="how many words (default 10)")
    for action in (info, cover, near):
        action.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action; return 0."""
    action: Callable[[argparse.Namespace], None] = args.action
    action(args)
    return 0


def _show(args: argparse.Namespace, values: dict[str, object], lines: list[str]) -> None:
    text = json.dumps(values, ensure_ascii=False) if args.json else "\n".join(lines)
    sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace") + b"\n")


def _info(args: argparse.Namespace) -> None:
    from frostline.vectors import load

    vectors = load(args.file)
    first = vectors.words[:5]
    values = {"file": args.file, "words": len(vectors), "dimension": vectors.dimension, "first": first}
    _show(args, values, [f"{len(vectors):,} words, dimension {vectors.dimension}; the first: {' '.join(first)}"])


def _convert(args: argparse.Namespace) -> None:
    from frostline.vectors import load, save

    vectors = load(args.file)
    save(vectors, args.out)
    print(f"{len(vectors):,} words, dimension {vectors.dimension}, in {args.out}")


def _cover(args: argparse.Namespace) -> None:
    from frostline.errors import DataFileError
    from frostline.vectors import cover, load

    vectors = load(args.file)
    raw = sys.stdin.buffer.read() if args.text is None else Path(args.text).read_bytes()
    try:
        counts = Counter(raw.decode().split())
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataFileError(f"{args.text or 'stdin'}:{line}: not UTF-8. Convert it: iconv -f latin1 -t utf-8") from None
    coverage = cover(counts, vectors, args.lowercase)
    share = coverage.found_words / coverage.words if coverage.words else 1.0
    values = {
        "words": coverage.words,
        "found": coverage.found_words,
        "share": share,
        "tokens": coverage.tokens,
        "tokens_found": coverage.found_tokens,
        "tokens_share": coverage.share,
        "missing": coverage.missing,
    }
    lines = [
        f"{coverage.found_words:,} of {coverage.words:,} different words have a vector ({share:.1%})",
        f"{coverage.found_tokens:,} of {coverage.tokens:,} words in the text ({coverage.share:.1%})",
    ]
    if coverage.missing:
        shown = " ".join(f"{word} ({counts[word]:,})" for word in coverage.missing[:10])
        lines.append(f"most frequent missing words: {shown}")
    _show(args, values, lines)


def _near(args: argparse.Namespace) -> None:
    from frostline.vectors import load, near

    found = near(load(args.file), args.word, args.count)
    values = {"word": args.word, "near": [{"word": word, "cosine": cosine} for word, cosine in found]}
    _show(args, values, [f"{cosine:7.4f}  {word}" for word, cosine in found])
