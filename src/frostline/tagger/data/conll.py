"""Labelled text in CoNLL columns: one token a line, its tag in another column, a blank line between sentences.

The idea: only LF ends a line (a CR before it is dropped, a CR elsewhere is an error), and only TAB and SPACE separate,
so every other character, Unicode spaces included, belongs to a token. Where a line holds a TAB, only TABs separate: a
token may then hold spaces, or be empty, as happens in real files. Tags of any scheme are returned in IOB2.
"""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from frostline.errors import DataFileError
from frostline.tagger.data.tags import Scheme, detect_scheme, read_tags, write_tags

_TAG = re.compile(r"O|[BIESLU]-.+")
_WHITESPACE = " \t\r"
_SHORT = reprlib.Repr()
_SHORT.maxstring = 80  # in a message: a binary file may be one line of megabytes
quoted = _SHORT.repr
Parsed = TypeVar("Parsed")


class Sentence(NamedTuple):
    """One labelled sentence: `tokens` and `tags`, two sequences of strings of the same length."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]


class Sentences(list[Sentence]):
    """The sentences of a file; `scheme` is the one their tags were written in."""

    scheme: Scheme = "IOB2"


@dataclass(frozen=True)
class Columns:
    """Which columns of a file hold tokens and tags.

    Args:
        token: Column of the token: 1 is the first, -1 the last.
        tag: Column of the tag.
        separator: The characters between columns. Every line must then have the same number of columns, since a
            separator inside a token looks like any other. None: TAB in a line that has one, else spaces.
        comments: A line that begins with this is skipped. None: no line is, since `#` is a token like any other.

    Raises:
        ValueError: column 0, or an empty separator or prefix.
    """

    token: int = 1
    tag: int = -1
    separator: str | None = None
    comments: str | None = None

    def __post_init__(self) -> None:
        for name in ("token", "tag"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name}: columns are counted from 1 (the first) or -1 (the last), got 0.")
        for name in ("separator", "comments"):
            if getattr(self, name) == "":
                raise ValueError(f"{name}: empty. Pass at least one character, or None.")

    def parse(self, line: str) -> tuple[str, str]:
        """Return token and tag of a line.

        Raises:
            ValueError: the line has no valid token and tag.
        """
        fields = self._fields(line)
        if len(fields) < 2:
            raise ValueError(
                f"no tag beside {quoted(fields[0])}. Write token, TAB, tag; leave a line empty to end a sentence."
            )
        token, tag = self.parse_token(line), _field(fields, self.tag, line)
        if _index(self.token) % len(fields) == _index(self.tag) % len(fields):
            raise ValueError(f"column {self.token} is the token's and the tag's. Choose two columns.")
        if not _TAG.fullmatch(tag) or not tag.isprintable():
            raise ValueError(
                f"tag {quoted(tag)} of {quoted(token)} is not O, B-type or I-type (nor E-, S-, L- or U-type), in "
                f"printable characters. Say which column holds the tag, and what begins a comment."
            )
        return token, tag

    def parse_token(self, line: str) -> str:
        """Return the token of a line, which need not have a tag.

        Raises:
            ValueError: the line has no token.
        """
        token = _field(self._fields(line), self.token, line)
        if not token and self.separator is None and "\t" not in line:
            raise ValueError(
                f"no token before {quoted(line.strip(_WHITESPACE))}. Begin the line with it, or separate by TABs."
            )
        return token

    def is_comment(self, line: str) -> bool:
        """Return whether a line is a comment.

        Raises:
            ValueError: the line could be a token as well, which must not be lost.
        """
        if self.comments is None or not line.startswith(self.comments):
            return False
        try:
            token, _ = self.parse(line)
        except ValueError:
            return True
        raise ValueError(
            f"{quoted(line)} begins as a comment, {self.comments!r}, and reads as the token {quoted(token)} with its "
            f"tag. Pass a prefix that only comments have."
        )

    def _fields(self, line: str) -> list[str]:
        if self.separator is not None:
            return [field.strip(" ") for field in line.split(self.separator)]
        line = line.rstrip(_WHITESPACE)
        return [field.strip(" ") for field in line.split("\t")] if "\t" in line else re.split(" +", line)

    def end_with_separator(self, line: str) -> str:
        """Return a line with a separator at its end, ready for one more column."""
        if self.separator is not None:
            return line + self.separator
        if "\t" in line:
            return line + "\t"
        line = line.rstrip(_WHITESPACE)
        return line + (" " if " " in line else "\t")


def decode_lines(lines: Iterable[bytes], path: str) -> Iterator[str]:
    """Yield each line of a binary file as text without its line end.

    Raises:
        DataFileError: a line is not UTF-8; the message names path:line.
    """
    for line_number, raw in enumerate(lines, start=1):
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            fix = "gunzip" if line_number == 1 and raw.startswith(b"\x1f\x8b") else "iconv -f latin1 -t utf-8"
            raise DataFileError(
                f"{path}:{line_number}: byte 0x{raw[error.start]:02x} is not UTF-8. Convert it first: {fix}"
            ) from None
        yield text.removeprefix("\ufeff").rstrip("\r\n")  # concatenated files with a BOM have one in the middle


def read_conll(path: str | os.PathLike[str], columns: Columns | None = None) -> Sentences:
    r"""Read the labelled sentences of a CoNLL file.

    Args:
        path: A UTF-8 file with at least two columns.
        columns: Where tokens and tags are; by default the token is in the first column and the tag in the last.

    Returns:
        The sentences in file order, none of them empty, their tags in IOB2: a list with the attribute `scheme`, the
        one the file is written in (IOB1, IOB2, BIOES or BILOU), detected from all tags. `-DOCSTART-` lines separate
        sentences and are not tokens.

    Raises:
        DataFileError: a line without a tag, an invalid tag, BIOES beside BILOU, a BIOES or BILOU tag that contradicts
            the one before, a line that could be a comment and a token, a CR inside a line, bytes that are not UTF-8,
            or no sentence at all. The message names path:line.
        OSError: the file cannot be opened.

    Cost: one pass over the lines.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "two.conll"
        ...     _ = path.write_text("New\tB-place\nYork\tE-place\n\nHi O\n", encoding="utf-8")
        ...     sentences = read_conll(path)
        >>> [sentence.tags for sentence in sentences], sentences.scheme
        ([('B-place', 'I-place'), ('O',)], 'BIOES')

    Source: the column format of the CoNLL-2003 shared task.
    """
    columns = columns or Columns()
    with Path(path).open("rb") as file:
        blocks = list(_blocks(decode_lines(file, str(path)), str(path), columns, columns.parse))
    if not blocks:
        raise DataFileError(f"{path}: no labelled token in it. Expected one 'token<TAB>tag' a line.")
    sentences = Sentences()
    try:
        sentences.scheme = detect_scheme([tag for _, _, (_, tag) in block] for block in blocks)
    except ValueError as error:
        raise DataFileError(f"{path}:{_mixed(blocks)}: {error}") from None
    for block in blocks:
        tokens, tags = zip(*(labelled for _, _, labelled in block), strict=True)
        try:
            entities = read_tags(tags, sentences.scheme)
        except ValueError as error:
            index, wrong = error.args
            raise DataFileError(
                f"{path}:{block[index][0]}: tag {wrong}. Correct it; this file is {sentences.scheme}."
            ) from None
        sentences.append(Sentence(tokens, tuple(write_tags(entities, len(tokens)))))
    return sentences


def read_tokens(lines: Iterable[str], path: str, columns: Columns) -> Iterator[list[tuple[str, str]]]:
    """Yield the sentences of a file in columns, which need not have tags.

    Args:
        lines: Its lines, without their ends.
        path: Its name, for messages.
        columns: Where the tokens are.

    Yields:
        For each token its line, which ends with a separator so that a column can be added, and the token itself.

    Raises:
        DataFileError: a line without a token; the message names path:line.
    """
    for block in _blocks(lines, path, columns, columns.parse_token):
        yield [(columns.end_with_separator(line), token) for _, line, token in block]


def _blocks(
    lines: Iterable[str], path: str, columns: Columns, parse: Callable[[str], Parsed]
) -> Iterator[list[tuple[int, str, Parsed]]]:
    """Yield the sentences: for each token its line's number, the line, and the result of `parse`."""
    block: list[tuple[int, str, Parsed]] = []
    separators = None  # in the first line
    for line_number, line in enumerate(lines, start=1):
        if not line.strip(_WHITESPACE) or line.startswith("-DOCSTART-"):
            if block:
                yield block
            block = []
            continue
        if "\r" in line:
            raise DataFileError(f"{path}:{line_number}: a CR inside the line. End lines with LF, or with CR and LF.")
        try:
            if columns.is_comment(line):
                continue
            parsed = parse(line)
        except ValueError as error:
            raise DataFileError(f"{path}:{line_number}: {error}") from None
        if columns.separator is not None:
            found = line.count(columns.separator)
            separators = found if separators is None else separators
            if found != separators:
                raise DataFileError(
                    f"{path}:{line_number}: {found + 1} columns, where the first line has {separators + 1}. "
                    f"Choose a separator that no token holds, such as TAB."
                )
        block.append((line_number, line, parsed))
    if block:
        yield block


def _mixed(blocks: Iterable[list[tuple[int, str, tuple[str, str]]]]) -> int:
    """Return the number of the first line by which the file has tags of both BIOES and BILOU."""
    first: dict[str, int] = {}
    for block in blocks:
        for line_number, _, (_, tag) in block:
            first.setdefault(tag[0], line_number)
    return max(min(first[letter] for letter in letters if letter in first) for letters in ("ES", "LU"))


def _field(fields: list[str], column: int, line: str) -> str:
    if len(fields) < abs(column):
        raise ValueError(
            f"{len(fields)} columns in {quoted(line)}, {abs(column)} needed. Choose other columns or a separator."
        )
    return fields[_index(column)]


def _index(column: int) -> int:
    return column - (column > 0)
