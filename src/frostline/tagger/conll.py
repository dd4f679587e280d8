"""Labelled text in CoNLL columns: one token a line, the token first, its tag last, a blank line between sentences.

The idea: only LF ends a line (a CR before it is dropped), only TAB and SPACE separate, so every other character,
Unicode blanks included, belongs to a token. Where a line holds a TAB, the TAB alone separates: a token may then hold
blanks, or be empty, as it happens in real files. Tags are O, B-type or I-type.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from frostline.errors import DataFileError

_TAG = re.compile(r"O|[BI]-.+")
_BLANKS = " \t\r"


class Sentence(NamedTuple):
    """One labelled sentence: `tokens` and `tags`, two sequences of strings of the same length."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]


def decoded(lines: Iterable[bytes], path: str) -> Iterator[str]:
    """Yield each of `lines` (as a binary file gives them) as text without its line end.

    Raises:
        DataFileError: a line is not UTF-8; the message names path:line.
    """
    for number, raw in enumerate(lines, start=1):
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataFileError(
                f"{path}:{number}: byte 0x{raw[error.start]:02x} is not UTF-8. "
                f"Convert it first, for example: iconv -f latin1 -t utf-8"
            ) from None
        yield (text.removeprefix("\ufeff") if number == 1 else text).rstrip("\r\n")


def read(path: str | os.PathLike[str]) -> list[Sentence]:
    r"""Read the labelled sentences of a CoNLL file.

    Args:
        path: A UTF-8 file with at least two columns; columns between the first and the last are ignored.

    Returns:
        The sentences in file order, none of them empty. `-DOCSTART-` lines separate and are not tokens.

    Raises:
        DataFileError: a line without a tag, a tag that is not O, B-type or I-type, bytes that are not UTF-8, or no
            sentence at all. The message names path:line.
        OSError: the file cannot be opened.

    Cost: one pass over the lines.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "two.conll"
        ...     _ = path.write_text("New\tB-place\nYork\tI-place\n\nHi O\n", encoding="utf-8")
        ...     [sentence.tags for sentence in read(path)]
        [('B-place', 'I-place'), ('O',)]

    Source: the column format of the CoNLL-2003 shared task.
    """
    sentences: list[Sentence] = []
    tokens: list[str] = []
    tags: list[str] = []

    def end_sentence() -> None:
        if tokens:
            sentences.append(Sentence(tuple(tokens), tuple(tags)))
            tokens.clear()
            tags.clear()

    with Path(path).open("rb") as file:
        for number, line in enumerate(decoded(file, str(path)), start=1):
            if not line.strip(_BLANKS) or line.startswith("-DOCSTART-"):
                end_sentence()
                continue
            try:
                token, tag = _columns(line)
            except ValueError as error:
                raise DataFileError(f"{path}:{number}: {error}") from None
            tokens.append(token)
            tags.append(tag)
    end_sentence()
    if not sentences:
        raise DataFileError(f"{path}: no labelled token in it. Expected one 'token<TAB>tag' a line.")
    return sentences


def _columns(line: str) -> tuple[str, str]:
    line = line.rstrip(_BLANKS)
    fields = [field.strip(" ") for field in line.split("\t")] if "\t" in line else line.split(" ")
    token, tag = fields[0], fields[-1]
    if len(fields) < 2:
        raise ValueError(f"no tag beside {token!r}. Write token, TAB, tag; leave a line empty to end a sentence.")
    if not token and "\t" not in line:
        raise ValueError(f"no token before {tag!r}. Begin the line with its token, or separate the columns by a TAB.")
    if not _TAG.fullmatch(tag):
        raise ValueError(f"tag {tag!r} of {token!r} is not O, B-type or I-type. Put the tag last, in the BIO scheme.")
    return token, tag
