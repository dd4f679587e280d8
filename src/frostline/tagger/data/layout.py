"""What the columns of a file are: found where a file is plainly CoNLL-U, and refused where they cannot be as assumed.

The idea: a wrong column raises no error by itself, since every text is a possible token, and the tags or figures made
of it look like any others. So what no text in columns looks like is refused: words that count 1, 2, 3, lines that begin
with # and have other columns than those around them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from frostline.errors import DataFileError
from frostline.tagger.data.columns import CONLLU, Columns, quoted

_COMMENT = "#"
_NUMBER = re.compile(r"[-+]?[0-9]+([.,:][0-9]+)*")
_NUMBERS = 10  # tokens, all of them numbers, from which on a column is no text
_TAGGED = re.compile(r".*\S[\t ]+(O|[BIESLU]-\S+)\s*")
_TAGGED_LINES = 3  # in a row at the beginning, from which on a text is in columns
_FIX = "Pass the column of the token: --token-column N (in Python Columns(token=N)); 1 if it is right."


def find_columns(lines: Iterable[str]) -> tuple[Columns, Iterator[str]]:
    """Return the columns of a file that were not named, and its lines again; reads as far as the first sentence ends.

    A file is CoNLL-U where its first sentence has TABs in each line but comments, and ids 1, 2, 3, ... before them.

    Example:
        >>> columns, lines = find_columns(["# text = Oslo is", "1\\tOslo\\tB-place", "2\\tis\\tO", ""])
        >>> columns == CONLLU, len(list(lines))
        (True, 4)
    """
    lines, first = iter(lines), []
    for line in lines:
        first.append(line)
        if not line.strip() and any(map(str.strip, first)):
            break
    return (CONLLU if _is_conllu([line for line in first if line.strip()]) else Columns()), chain(first, lines)


def _is_conllu(lines: Sequence[str]) -> bool:
    rows = [line.split("\t") for line in lines if not line.startswith(_COMMENT)]
    ids = [row[0] for row in rows if row[0].isdecimal()]
    if not ids or len({len(row) for row in rows}) != 1 or len(rows[0]) < 3:
        return False
    others = [row[0] for row in rows if not row[0].isdecimal()]
    counted = ids == [str(number) for number in range(1, len(ids) + 1)]
    return counted and all(map(CONLLU.is_skipped, others)) and (len(ids) > 1 or len(rows) < len(lines))


class ColumnCheck:
    """Refuses sentences of a file whose columns cannot be those that they are read as.

    Args:
        columns: How lines are cut. Where `columns.token` is not None, numbers are what it is to hold.
    """

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._numbers: int | None = 0  # tokens so far, all of them numbers; None: one was none

    def sentence(self, lines: Sequence[str], tokens: Sequence[str]) -> None:
        """Check one sentence.

        Raises:
            ValueError: (index of the line, message).
        """
        widths = [len(self._columns.fields(line)) for line in lines]
        comments = [index for index, line in enumerate(lines) if line.startswith(_COMMENT)]
        others = {width for index, width in enumerate(widths) if index not in comments}
        for index in comments:
            if (len(others) == 1 and widths[index] not in others) or (not others and len(set(widths)) > 1):
                raise ValueError(
                    index,
                    f"{quoted(lines[index])} begins like a comment and has other columns than the lines around it. "
                    f"Pass --comments '#' (in Python comments=\"#\"), or write it in the same columns.",
                )
        if self._columns.token is not None or min(widths) < 2:
            return
        start = tokens[0]
        if len(tokens) > 2 and start in ("0", "1"):
            counted = [str(int(start) + index) for index in range(len(tokens))]
            if list(tokens) == counted:
                raise ValueError(0, f"column 1 counts {', '.join(tokens[:3])} instead of holding tokens. {_FIX}")
        if self._numbers is not None:
            self._numbers = self._numbers + len(tokens) if all(map(_NUMBER.fullmatch, tokens)) else None
            if self._numbers is not None and self._numbers >= _NUMBERS:
                raise ValueError(0, f"column 1 holds nothing but numbers so far, here {quoted(start)}. {_FIX}")


def check_text(lines: Iterable[str], path: str) -> Iterator[str]:
    """Yield the lines of plain text.

    Raises:
        DataFileError: the first three lines with text each end with a tag, as in columns.
    """
    tagged, begun = 0, True
    for number, line in enumerate(lines, start=1):
        if begun and line.strip():
            begun = _TAGGED.fullmatch(line) is not None
            tagged += begun
            if tagged == _TAGGED_LINES:
                raise DataFileError(
                    f"{path}:{number}: {quoted(line)} and the lines before end with a tag. Pass --tokens for columns."
                )
        yield line
