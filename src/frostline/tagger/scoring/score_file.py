"""Score the output of any tagger from a file, as conlleval does: gold and predicted tag in the last two columns.

The idea: what conlleval reads is read in the same way. Lines of different lengths are an error, as in conlleval; here
the error names the line. So is a column that holds no tags, of which conlleval says 0.00.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from frostline.errors import DataFileError
from frostline.tagger.data.columns import CONLLU, Columns, quoted
from frostline.tagger.data.layout import find_columns
from frostline.tagger.scoring.conlleval import EntityCounts
from frostline.tagger.scoring.scores import Score

_BOUNDARY = "-X-"
_GOLD, _PREDICTED = -2, -1  # the columns of conlleval
_TAG = re.compile(r"O|[BIESLU](-.*)?|[\[\].](-.*)?")  # letters that conlleval knows, and those of other schemes


def score_file(path: str | os.PathLike[str], columns: Columns | None = None) -> Score:
    r"""Score a system's output as conlleval does.

    Args:
        path: One token a line, the predicted tag in the last column, the same number of columns in every line; an empty
            line, or one that begins with the column -X-, between sentences. If the first line that is not empty holds
            a TAB, TABs separate the columns, else single spaces do. Tokens may be in any encoding.
        columns: `tag` is the column of the gold tag; `separator` and `comments` as for `read_conll`. None: the last
            but one, or of CoNLL-U (see `CONLLU`) the third if that alone holds tags.

    Returns:
        The figures; `score.conlleval()` is what conlleval prints.

    Raises:
        DataFileError: a line with fewer than two columns or with more or fewer than the first, a column of which most
            are no tags, a tag that is not UTF-8, or no token at all. The message names path:line.
        OSError: the file cannot be opened.

    Cost: one pass over the lines, 1 to 2 microseconds a token; only counts are kept in memory.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "out.txt"
        ...     _ = path.write_text("New B-place B-place\nYork I-place O\n\nOslo B-place B-place\n", encoding="utf-8")
        ...     print(score_file(path).conlleval())
        processed 3 tokens with 2 phrases; found: 2 phrases; correct: 1.
        accuracy:  66.67%; precision:  50.00%; recall:  50.00%; FB1:  50.00
                    place: precision:  50.00%; recall:  50.00%; FB1:  50.00  2

    Source: conlleval.pl of 2004-01-26, except that a byte order mark, a CR before the line end and spaces around a tag,
    which an editor does not show, are dropped.
    """
    counts = EntityCounts()
    found: tuple[dict[str, int], dict[str, int]] = ({}, {})
    times: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    with Path(path).open("rb") as file:
        lines: Iterable[str] = _lines(file, str(path))
        if columns is None:
            columns, lines = _find(lines)
        width = 0
        for line_number, columns_here, gold, predicted in _pairs(lines, str(path), columns):
            width = columns_here
            if gold is None or predicted is None:
                counts.boundary()
                continue
            counts.token(gold, predicted)
            for column, tag in enumerate((gold, predicted)):
                times[column][tag] += 1
                found[column].setdefault(tag, line_number)
    if not counts.tokens:
        raise DataFileError(f"{path}: no token in it. Expected lines of a token, its gold tag and its predicted tag.")
    _check_tags(str(path), width, columns.tag, "gold", times[0], found[0])
    _check_tags(str(path), width, _PREDICTED, "predicted", times[1], found[1])
    return Score.from_counts(counts.finish())


def _check_tags(path: str, width: int, column: int, name: str, times: Counter[str], first: dict[str, int]) -> None:
    """Raise DataFileError if most of a column are no tags; `first` is the line on which each came first."""
    wrong = [tag for tag in first if not _TAG.fullmatch(tag)]
    if 2 * sum(times[tag] for tag in wrong) <= times.total():
        return
    fix = (
        "Pass --tag-column N (in Python Columns(tag=N))"
        if name == "gold"
        else "The prediction has to be the last column"
    )
    raise DataFileError(
        f"{path}:{first[wrong[0]]}: the {name} tag {quoted(wrong[0])} in column {column % (width + 1)} of {width} is "
        f"no tag, and so are most of that column. {fix}."
    )


def _lines(file: Iterable[bytes], path: str) -> Iterator[str]:
    for line_number, raw in enumerate(file, start=1):
        line = (raw.removeprefix(b"\xef\xbb\xbf") if line_number == 1 else raw).rstrip(b"\r\n \t")
        if b"\r" in line:
            raise DataFileError(f"{path}:{line_number}: a CR inside the line. End lines with LF, or with CR and LF.")
        yield line.decode("utf-8", errors="surrogateescape")


def _find(lines: Iterable[str]) -> tuple[Columns, Iterator[str]]:
    """Return the columns of a file that were not named, and its lines again."""
    first: list[str] = []

    def noted() -> Iterator[str]:
        for line in lines:
            first.append(line)
            yield line

    columns, again = find_columns(noted())
    rows = [line.split("\t") for line in first if line and not columns.is_skipped(line)] if columns.ids else []
    third = CONLLU.tag - 1
    if all(_TAG.fullmatch(row[third]) for row in rows) and not all(_TAG.fullmatch(row[_GOLD]) for row in rows):
        return columns, again
    return replace(columns, tag=_GOLD), again


def _pairs(lines: Iterable[str], path: str, columns: Columns) -> Iterator[tuple[int, int, str | None, str | None]]:
    """Yield line number, number of columns, gold and predicted tag of each token; no tags for each boundary."""
    separator, width = columns.separator or "", 0
    gold_index = columns.tag - (columns.tag > 0)
    for line_number, text in enumerate(lines, start=1):
        if not text:
            yield line_number, width, None, None
            continue
        if (columns.comments is not None or columns.ids) and columns.is_skipped(text):
            continue
        separator = separator or ("\t" if "\t" in text else " ")
        fields = text.split(separator)
        if not width:
            width = len(fields)
            _check_gold(columns.tag, width, f"{path}:{line_number}")
        if len(fields) != width or width < 2:
            raise DataFileError(f"{path}:{line_number}: {_wrong_columns(fields, width, separator)}")
        if fields[0] == _BOUNDARY:
            yield line_number, width, None, None
            continue
        gold, predicted = fields[gold_index].strip(" "), fields[_PREDICTED].strip(" ")
        for tag in (gold, predicted):
            if not tag.isprintable():
                raise DataFileError(f"{path}:{line_number}: tag {quoted(tag)} is not printable. Write it in UTF-8.")
        yield line_number, width, gold, predicted


def _check_gold(column: int, width: int, place: str) -> None:
    if abs(column) > width > 1:
        raise DataFileError(
            f"{place}: no gold tag in column {column}: the line has {width}. Pass another --tag-column."
        )
    if column in (_PREDICTED, width):
        raise DataFileError(
            f"{place}: column {column} is the last, which holds the predicted tag. Pass the gold tag's as --tag-column."
        )


def _wrong_columns(fields: list[str], columns: int, separator: str) -> str:
    name = "TABs" if separator == "\t" else "single spaces"
    if columns < 2:
        return (
            f"one column, {quoted(fields[0])}. Write the token, its gold tag and its predicted tag, TABs between them."
        )
    return (
        f"{len(fields)} columns, separated by {name}, where the first line has {columns}. "
        f"Write the same number in every line; separate by TABs where a token holds spaces."
    )
