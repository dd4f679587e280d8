"""`frostline vectors info | convert | cover | near | evaluate | cache`: inspect and convert files of word vectors."""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frostline.vectors import Vectors

HELP = "inspect files of word vectors, convert them, see which words they cover"

_INFO_EXAMPLES = """\
examples:
  frostline vectors info glove.6B.50d.txt.gz
  frostline vectors info glove.6B.zip:glove.6B.50d.txt
  frostline vectors info wiki.en.vec --json"""
_CONVERT_EXAMPLES = """\
examples:
  frostline vectors convert glove.6B.50d.txt.gz glove.safetensors
  frostline vectors convert GoogleNews-vectors-negative300.bin.gz news.safetensors
  frostline vectors convert glove.6B.zip:glove.6B.50d.txt glove.vec

The name of OUT says the format: .safetensors, .txt (GloVe text), .vec (word2vec text), .bin (word2vec binary)."""
_COVER_EXAMPLES = """\
examples:
  frostline vectors cover glove.6B.50d.txt.gz text.txt --lowercase
  cut -f1 train.conll | frostline vectors cover glove.6B.50d.txt.gz --json

Words are separated by whitespace."""
_NEAR_EXAMPLES = """\
examples:
  frostline vectors near glove.6B.50d.txt.gz frost
  frostline vectors near glove.6B.50d.txt.gz king - man + woman
  frostline vectors near glove.6B.50d.txt.gz frost --count 3 --json"""
_CACHE_EXAMPLES = """\
examples:
  frostline vectors cache
  frostline vectors cache --clear
  FROSTLINE_CACHE=/data/cache frostline vectors cache

Text that was read is kept, to be opened in milliseconds, in the folder that FROSTLINE_CACHE names, or in the
system's folder for caches (~/.cache/frostline). It is used only where nobody else can write to it. Of files that are
gone nothing is kept, and of all others together 20 GB, those that were opened last."""


_EVALUATE_EXAMPLES = """\
examples:
  frostline vectors evaluate vectors.bin --similarity wordsim353.tsv --analogies questions-words.txt
  frostline vectors evaluate a.bin b.bin glove.6B.50d.txt.gz --similarity *.tsv --restrict 30000

The figures are those of gensim's evaluate_word_pairs and evaluate_word_analogies."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands and their arguments."""
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

    near = actions.add_parser("near", help="the words nearest to a word or an analogy", epilog=_NEAR_EXAMPLES)
    near.description = "List the words whose vectors have the highest cosine similarity with a word's."
    near.set_defaults(action=_near)

    cache = actions.add_parser("cache", help="what is kept of files that were read", epilog=_CACHE_EXAMPLES)
    cache.description = "List the files of the cache of word vectors, or remove them."
    cache.set_defaults(action=_cache)

    for action in (info, convert, cover, near):
        action.add_argument("file", metavar="F", help="word vectors: .txt .vec .bin .gz .zip[:MEMBER] .safetensors")
    convert.add_argument("out", metavar="OUT", help="file to write: .safetensors .txt .vec .bin")
    cover.add_argument("text", metavar="TEXT", nargs="?", help="UTF-8 text (default: stdin)")
    cover.add_argument("--lowercase", action="store_true", help="look a missing word up again in lower case")
    near.add_argument("word", metavar="WORD", nargs="+", help="a word that has a vector, or several with + and -")
    near.add_argument("--count", metavar="N", type=int, default=10, help="how many words (default 10)")
    cache.add_argument("--clear", action="store_true", help="remove all of them")
    for action in (info, cover, near, cache):
        action.add_argument("--json", action="store_true", help="print one JSON object")
    _add_evaluate(actions)


def _add_evaluate(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    evaluate = actions.add_parser("evaluate", help="word similarity and analogies", epilog=_EVALUATE_EXAMPLES)
    evaluate.description = "Compare word vectors with people's judgement of similarity, and let them answer analogies."
    evaluate.add_argument("files", metavar="F", nargs="+", help="word vectors: .txt .vec .bin .gz .safetensors")
    evaluate.add_argument("--similarity", metavar="F", nargs="+", default=[], help="lines of two words and a number")
    evaluate.add_argument("--analogies", metavar="F", nargs="+", default=[], help="lines of four words")
    evaluate.add_argument(
        "--restrict", metavar="N", type=int, default=300_000, help="use the first N words (default 300000)"
    )
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    evaluate.set_defaults(action=_evaluate)


def run(args: argparse.Namespace) -> int:
    """Run the chosen action; return 0."""
    action: Callable[[argparse.Namespace], None] = args.action
    action(args)
    return 0


def _show(args: argparse.Namespace, values: Mapping[str, object], lines: list[str]) -> None:
    text = json.dumps(values, ensure_ascii=False) if args.json else "\n".join(lines)
    sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace") + b"\n")


def _load(name: str, quiet: bool = False) -> Vectors:
    """Load the vectors that an argument names; what `load` warns of is one line on stderr, unless `quiet`."""
    from frostline.vectors import load
    from frostline.vectors.packed import split_member

    path, member = split_member(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        vectors = load(path, member=member)
    for warning in () if quiet else caught:
        print(f"frostline: warning: {warning.message}", file=sys.stderr)
    return vectors


def _info(args: argparse.Namespace) -> None:
    vectors = _load(args.file, quiet=True)
    first, duplicates = vectors.words[:5], vectors.duplicates
    values = {"file": args.file, "words": len(vectors), "dimension": vectors.dimension, "first": first}
    lines = [f"{len(vectors):,} words, dimension {vectors.dimension}; the first: {' '.join(first)}"]
    if duplicates.total:
        values["duplicates"] = duplicates._asdict()
        lines.append(f"{duplicates}. The first vector of each is used.")
    _show(args, values, lines)


def _convert(args: argparse.Namespace) -> None:
    from frostline.vectors import save

    vectors = _load(args.file)
    save(vectors, args.out)
    print(f"{len(vectors):,} words, dimension {vectors.dimension}, in {args.out}")


def _cover(args: argparse.Namespace) -> None:
    from frostline.errors import DataFileError
    from frostline.files import standard_input
    from frostline.vectors import cover

    vectors = _load(args.file)
    raw = standard_input().read() if args.text is None else Path(args.text).read_bytes()
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
        "tokens_lower_case_finds": coverage.lower_case_finds,
    }
    lines = [
        f"{coverage.found_words:,} of {coverage.words:,} different words have a vector ({share:.1%})",
        f"{coverage.found_tokens:,} of {coverage.tokens:,} words in the text ({coverage.share:.1%})",
    ]
    if coverage.missing:
        shown = " ".join(f"{word} ({counts[word]:,})" for word in coverage.missing[:10])
        lines.append(f"most frequent missing words: {shown}")
    if coverage.lower_case_finds:
        lines.append(f"{coverage.lower_case_finds:,} more words in the text have a vector in lower case: --lowercase")
    _show(args, values, lines)


def _near(args: argparse.Namespace) -> None:
    from frostline.vectors import near

    query = " ".join(args.word)
    found = near(_load(args.file), query, args.count)
    values = {"word": query, "near": [{"word": word, "cosine": cosine} for word, cosine in found]}
    _show(args, values, [f"{cosine:7.4f}  {word}" for word, cosine in found])


def _cache(args: argparse.Namespace) -> None:
    from frostline.files import cache_folder
    from frostline.printing import text_table
    from frostline.vectors import cached_files, clear_cache

    folder = cache_folder("vectors")
    if args.clear:
        freed = clear_cache()
        return _show(args, {"folder": str(folder), "freed": freed}, [f"{_size(freed)} freed in {folder}"])
    files = cached_files()
    rows, listed = [], []
    for file in files:
        source = "unknown" if file.source is None else str(file.source)
        name = source if file.member is None else f"{source}:{file.member}"
        listed.append({"source": name, "bytes": file.bytes, "opened": file.opened})
        gone = "" if file.source is None or file.source.exists() else " (gone)"
        rows.append((_size(file.bytes), time.strftime("%Y-%m-%d %H:%M", time.localtime(file.opened)), name + gone))
    table = [text_table([("size", "opened", "read from"), *rows], right=[0])] if rows else []
    total = f"{_size(sum(file.bytes for file in files))} in {folder}"
    _show(args, {"folder": str(folder), "files": listed}, [*table, total])


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _evaluate(args: argparse.Namespace) -> None:
    from frostline.errors import FrostlineError
    from frostline.printing import text_table
    from frostline.vectors import load
    from frostline.vectors.evaluate import analogies, similarity

    if not (args.similarity or args.analogies):
        raise FrostlineError("--similarity, --analogies: neither is given. Pass a file to evaluate with.")
    if args.restrict < 1:
        raise FrostlineError(f"--restrict: {args.restrict} is out of range. Pass 1 or more.")
    rows = [["vectors", "evaluated on", "measure", "score", "found", "of"]]
    results: dict[str, object] = {}
    for file in args.files:
        vectors, scores = load(file), dict[str, object]()
        results[file] = scores
        for path in args.similarity:
            pairs = similarity(vectors, path, args.restrict)
            scores[path] = pairs.__dict__ | {"spearman": _or_null(pairs.spearman)}
            rows.append([file, path, "Spearman", f"{pairs.spearman:.4f}", f"{pairs.found:,}", f"{pairs.pairs:,} pairs"])
        for path in args.analogies:
            asked = analogies(vectors, path, args.restrict)
            scores[path] = asked.__dict__ | {"accuracy": _or_null(asked.accuracy)}
            score = f"{100 * asked.accuracy:.2f} %"
            rows.append([file, path, "correct", score, f"{asked.found:,}", f"{asked.questions:,} questions"])
    _show(args, results, text_table(rows, right=(3, 4, 5)).split("\n"))


def _or_null(score: float) -> float | None:
    return None if score != score else score  # JSON has no nan
