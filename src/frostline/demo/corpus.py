"""English text that comes with every Python: the documentation of the installed Python.

Two parts without a page in common:

    docstrings   of the standard library, read with `ast` (nothing is imported): plain text, for word vectors
    topics       the language reference that `help("with")` shows: text with markup, for the tagger

The topics mark code terms with double quotes (The "with" statement ...). These marks are the gold labels: they are
removed from the text, and each token between a pair of them is tagged B-code or I-code, every other token O. Code
blocks, grammar, headings and signatures are left out. Many topics repeat sections of each other: topics that share a
paragraph form a family, and a family is never divided between training, dev and test.
"""

from __future__ import annotations

import ast
import re
import sys
import sysconfig
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from frostline.errors import DataFileError
from frostline.tagger.data.conll import Sentence

LABEL = "code"
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}

# The tail of "it's", a decimal number, e.g., a word with inner hyphens, a call's "()", a run of operators, other signs.
_TOKEN = re.compile(
    r"(?<=\w)[’'](?:s|t|re|ve|ll|d)\b|\d+(?:\.\d+)+|\b[ei]\.[ge]\.|\w+(?:-\w+)*|\(\)|\.\.\.|[-+*/%@&|^~<>=!]+|[^\w\s]"
)
# Code between double quotes: a space or an opening sign before the first, a space or a closing sign after the second.
_MARKED = re.compile(r'(?<![^\s(\[{—–/“‘…-])"(?=\S)([^"]+)(?<=\S)"(?![^\s)\]},.;:!?—–/”’…-])')
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,2})(?=[^\s*])([^*\n]*[^\s*])\1(?![\w*])")
_BULLET = re.compile(r"^(?:[*+-]|\d+\.|\[\d+\])\s+")
_SENTENCE_END = re.compile(r'(?<=[.?!])\s+(?=["“(]*[A-Z])')
_CODE_LINE = re.compile(
    r"::=|^\s*(?:>>>|#|@|\+-|class \w+[:(]|def |import |from \w+ import)|^\s*[\w.\[\]]+\s*[-+*/]?=\s"
)
_PLAIN_QUOTES = str.maketrans("“”‘’", "\"\"''")  # as the docstrings write them; safe once the markup is gone
_TABLE_LINE = re.compile(r"^\s*\||\S {3,}\S")


class Parts(NamedTuple):
    """Labelled sentences: to learn from, to choose the best epoch, to report."""

    train: list[Sentence]
    dev: list[Sentence]
    test: list[Sentence]


def tokenize(text: str) -> list[tuple[str, int]]:
    """Split a text into tokens with the position of each; the rule ignores markup.

    Example:
        >>> [token for token, _ in tokenize("It calls x.pop() for non-empty lists.")]
        ['It', 'calls', 'x', '.', 'pop', '()', 'for', 'non-empty', 'lists', '.']
    """
    return [(found.group(), found.start()) for found in _TOKEN.finditer(text)]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a topic, one line each, with markup; without code, grammar, tables and headings.

    Example:
        >>> list(paragraphs("Title\\n*****\\n\\nSome prose, with a \\"None\\" in\\nit.\\n\\n   x = 1\\n"))
        ['Some prose, with a "None" in it.']
    """
    for block in re.split(r"\n\s*\n", text):
        # A list item that follows another without an empty line is a paragraph of its own.
        for piece in re.split(r"\n(?=\s*(?:[*+-]|\d+\.)\s)", block):
            lines = piece.strip("\n").splitlines()
            if len(lines) > 1 and _indent(lines[0]) < _indent(lines[1]) and not _BULLET.match(lines[0].lstrip()):
                lines = lines[1:]  # a term above its definition
            if any(_CODE_LINE.search(line) or _TABLE_LINE.search(line) for line in lines):
                continue
            joined = re.sub(r"(?<=[A-Za-z])-\n\s*(?=[a-z])", "-", "\n".join(lines))  # a word broken at its hyphen
            joined = _BULLET.sub("", re.sub(r"\s+", " ", joined).strip())
            if len(joined.split()) >= 4 and re.match(r'["“(*]*[A-Za-z]', joined) and joined[-1] in '.,;:?!)"':
                yield joined


def read_markup(text: str) -> tuple[str, list[tuple[int, int]]] | None:
    """Remove the markup of a sentence; return None if its quotes cannot be paired safely.

    Args:
        text: One sentence, code terms between double quotes, emphasis between asterisks.

    Returns:
        The plain text, and the half-open range of each code term in it.

    Example:
        >>> read_markup('The *target* of "del x" is gone.')
        ('The target of del x is gone.', [(14, 19)])
        >>> read_markup('The string "a"b" is odd.') is None
        True
    """
    plain, spans, at = "", [], 0
    for found in _MARKED.finditer(text):
        plain += _EMPHASIS.sub(r"\2", text[at : found.start()])
        spans.append((len(plain), len(plain) + len(found.group(1))))
        plain += found.group(1)
        at = found.end()
    plain += _EMPHASIS.sub(r"\2", text[at:])
    return None if '"' in plain else (plain, spans)


def label(text: str) -> Sentence | None:
    """Return a marked-up sentence as tokens and tags; None if the marks cannot be read safely or are inside a token.

    Example:
        >>> label('Use "x.pop" or wait.').tags
        ('O', 'B-code', 'I-code', 'I-code', 'O', 'O', 'O')
    """
    read = read_markup(text)
    if read is None:
        return None
    plain, spans = read[0].translate(_PLAIN_QUOTES), read[1]
    found = tokenize(plain)
    tags = ["O"] * len(found)
    for start, end in spans:
        inside = [i for i, (_, at) in enumerate(found) if start <= at < end]
        if not inside or found[inside[0]][1] != start or found[inside[-1]][1] + len(found[inside[-1]][0]) != end:
            return None
        for i in inside:
            tags[i] = f"B-{LABEL}" if i == inside[0] else f"I-{LABEL}"
    return Sentence(tuple(token for token, _ in found), tuple(tags))


def sentences(text: str) -> list[Sentence]:
    """Return every labelled sentence of a topic that has at least four words."""
    split = (part for paragraph in paragraphs(text) for part in _SENTENCE_END.split(paragraph))
    read = (label(part) for part in split if len(part.split()) >= 4)
    return [sentence for sentence in read if sentence is not None]


def families(topics: Mapping[str, str]) -> list[list[str]]:
    """Group topics that share a paragraph of six words or more, directly or through others; names sorted.

    Example:
        >>> shared = "A paragraph that two topics both contain."
        >>> families({"a": shared, "b": "Words that are only here, in no other topic.", "c": "Words.\\n\\n" + shared})
        [['a', 'c'], ['b']]
    """
    family = {name: {name} for name in topics}
    owner: dict[str, str] = {}
    for name in sorted(topics):
        for block in re.split(r"\n\s*\n", topics[name]):
            words = block.split()
            other = owner.setdefault(" ".join(words), name)
            if len(words) >= 6 and family[other] is not family[name]:
                merged = family[other] | family[name]
                family.update(dict.fromkeys(merged, merged))
    return sorted({id(members): sorted(members) for members in family.values()}.values())


def split(topics: Mapping[str, str], dev: float = 0.15, test: float = 0.25) -> Parts:
    """Divide the labelled sentences into training, dev and test: no family of topics in two parts, no sentence twice.

    Args:
        topics: Name of each topic and its text.
        dev: The share of the sentences wanted for dev, between 0 and 1.
        test: The share wanted for test. A part gets no more than its share; the rest is for training.

    Returns:
        The three parts. The part of a family depends on its name and size alone, so every run has the same.
    """
    seen: set[tuple[str, ...]] = set()
    groups: list[tuple[int, list[Sentence]]] = []
    for names in families(topics):
        group = []
        for sentence in (sentence for name in names for sentence in sentences(topics[name])):
            if sentence.tokens not in seen:
                seen.add(sentence.tokens)
                group.append(sentence)
        groups.append((zlib.crc32(names[0].encode()), group))
    total = sum(len(group) for _, group in groups)
    parts = Parts([], [], [])
    for _, group in sorted(groups, key=lambda pair: pair[0]):
        for part, share in ((parts.test, test), (parts.dev, dev), (parts.train, 1.0)):
            if len(part) + len(group) <= share * total:
                part.extend(group)
                break
    return parts


def python_topics() -> dict[str, str]:
    """Return the language reference of the running Python, as `help()` shows it: topic name -> text.

    Raises:
        DataFileError: This Python was installed without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataFileError(
            f"pydoc_data.topics: not part of the Python at {sys.prefix}. Use one with its whole standard library."
        ) from None
    return dict(topics)


def docstrings_of(source: bytes) -> list[str]:
    """Return the docstrings in a Python source file, parsed and never run; [] if it does not parse.

    Example:
        >>> docstrings_of(b'def f():\\n    "Say hello."\\n')
        ['Say hello.']
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escapes in old files
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return [text for text in found if text]


def library_docstrings(root: Path | None = None) -> list[str]:
    """Return the docstrings of every module under `root` (None: this Python's standard library) except tests.

    Raises:
        DataFileError: There are none, because the library is installed without its source.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    files = (f for f in sorted(root.rglob("*.py")) if not _NOT_LIBRARY.intersection(f.relative_to(root).parts[:-1]))
    found = [text for file in files for text in docstrings_of(file.read_bytes())]
    if not found:
        raise DataFileError(f"{root}: no docstring in any .py file. Use a Python whose library comes with its source.")
    return found


def plain_sentences(texts: Iterable[str]) -> list[list[str]]:
    """Return unlabelled texts as lists of tokens, one list per paragraph, for training word vectors.

    Example:
        >>> plain_sentences(["Do it.\\nNow.\\n\\nStop here."])
        [['Do', 'it', '.', 'Now', '.'], ['Stop', 'here', '.']]
    """
    blocks = (block for text in texts for block in re.split(r"\n\s*\n", text))
    return [words for words in ([token for token, _ in tokenize(block)] for block in blocks) if len(words) > 1]
