"""Labelled text in CoNLL columns: one token a line, its tag in another column, a blank line between sentences.

The idea: only LF ends a line (a CR before it is dropped, a CR elsewhere is an error); `columns.py` cuts a line, and
`layout.py` refuses what cannot be what it is read as. Tags of any scheme are returned in IOB2.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

from frostline.errors import DataFileError
from frostline.tagger.data.columns import Columns
from frostline.tagger.data.layout import ColumnCheck, find_columns
from frostline.tagger.data.tags import Scheme, detect_scheme, read_tags, write_tags

_WHITESPACE = " \t\r"
Parsed = TypeVar("Parsed")


class Sentence(NamedTuple):
    """One labelled sentence: `tokens` and `tags`, two sequences of strings of the same length."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]


class Sentences(list[Sentence]):
    """The sentences of a file; `scheme` is the one their tags were written in, `columns` where they were read."""

    scheme: Scheme = "IOB2"
    columns: Columns = Columns()


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
        columns: Where tokens and tags are. None: as in CoNLL-U where the first sentence is plainly that, with ids and
            TABs (see `CONLLU`); else the token is in the first column and the tag in the last.

    Returns:
        The sentences in file order, none of them empty, their tags in IOB2: a list with the attribute `scheme`, the
        one the file is written in (IOB1, IOB2, BIOES or BILOU), detected from all tags, and `columns`, those that were
        read. `-DOCSTART-` lines separate sentences and are not tokens.

    Raises:
        DataFileError: a line without a tag, an invalid tag, BIOES beside BILOU, a BIOES or BILOU tag that contradicts
            the one before, a line that could be a comment and a token, tokens that can only be numbers of tokens, a CR
            inside a line, bytes that are not UTF-8, or no sentence at all. The message names path:line.
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
    with Path(path).open("rb") as file:
        lines: Iterable[str] = decode_lines(file, str(path))
        if columns is None:
            columns, lines = find_columns(lines)
        check = ColumnCheck(columns)
        blocks = list(_blocks(lines, str(path), columns, columns.parse, check, lambda parsed: parsed[0]))
    if not blocks:
        raise DataFileError(f"{path}: no labelled token in it. Expected one 'token<TAB>tag' a line.")
    sentences = Sentences()
    sentences.columns = columns
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


def read_tokens(lines: Iterable[str], path: str, columns: Columns | None) -> Iterator[list[tuple[str, str]]]:
    """Yield the sentences of a file in columns, which need not have tags.

    Args:
        lines: Its lines, without their ends.
        path: Its name, for messages.
        columns: Where the tokens are. None: as for `read_conll`.

    Yields:
        For each token its line, which ends with a separator so that a column can be added, and the token itself.

    Raises:
        DataFileError: a line without a token, or tokens that can only be numbers; the message names path:line.
    """
    if columns is None:
        columns, lines = find_columns(lines)
    check = ColumnCheck(columns)
    for block in _blocks(lines, path, columns, columns.parse_token, check, lambda token: token):
        yield [(columns.end_with_separator(line), token) for _, line, token in block]


def _blocks(
    lines: Iterable[str],
    path: str,
    columns: Columns,
    parse: Callable[[str], Parsed],
    check: ColumnCheck,
    token_of: Callable[[Parsed], str],
) -> Iterator[list[tuple[int, str, Parsed]]]:
    """Yield the sentences: for each token its line's number, the line, and the result of `parse`."""
    block: list[tuple[int, str, Parsed]] = []
    separators = None  # in the first line
    for line_number, line in enumerate(chain(lines, [""]), start=1):
        if not line.strip(_WHITESPACE) or line.startswith("-DOCSTART-"):
            if block:
                _check(block, path, check, token_of)
                yield block
            block = []
            continue
        if "\r" in line:
            raise DataFileError(f"{path}:{line_number}: a CR inside the line. End lines with LF, or with CR and LF.")
        try:
            if columns.is_skipped(line):
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


def _check(
    block: list[tuple[int, str, Parsed]], path: str, check: ColumnCheck, token_of: Callable[[Parsed], str]
) -> None:
    try:
        check.sentence([line for _, line, _ in block], [token_of(parsed) for _, _, parsed in block])
    except ValueError as error:
        index, wrong = error.args
        raise DataFileError(f"{path}:{block[index][0]}: {wrong}") from None


def _mixed(blocks: Iterable[list[tuple[int, str, tuple[str, str]]]]) -> int:
    """Return the number of the first line by which the file has tags of both BIOES and BILOU."""
    first: dict[str, int] = {}
    for block in blocks:
        for line_number, _, (_, tag) in block:
            first.setdefault(tag[0], line_number)
    return max(min(first[letter] for letter in letters if letter in first) for letters in ("ES", "LU"))
