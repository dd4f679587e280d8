"""Score the output of any tagger from a file, as conlleval does: gold and predicted tag in the last two columns.

The idea: what conlleval reads is read in the same way. Lines of different lengths are an error, as in conlleval; here
the error names the line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from frostline.errors import DataFileError
from frostline.tagger.data.conll import quoted
from frostline.tagger.scoring.conlleval import EntityCounts
from frostline.tagger.scoring.scores import Score

_BOUNDARY = "-X-"


def score_file(path: str | os.PathLike[str]) -> Score:
    r"""Score a system's output as conlleval does.

    Args:
        path: One token a line, the gold tag and the predicted one in the last two columns, the same number of columns
            in every line; an empty line, or one that begins with the column -X-, between sentences. If the first line
            that is not empty holds a TAB, TABs separate the columns, else single spaces do. Tokens may be in any
            encoding.

    Returns:
        The figures; `score.conlleval()` is what conlleval prints.

    Raises:
        DataFileError: a line with fewer than two columns or with more or fewer than the first, a tag that is not UTF-8,
            or no token at all. The message names path:line.
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
    for pair in _pairs(Path(path)):
        if pair is None:
            counts.boundary()
        else:
            counts.token(*pair)
    if not counts.tokens:
        raise DataFileError(f"{path}: no token in it. Expected lines of a token, its gold tag and its predicted tag.")
    return Score.from_counts(counts.finish())


def _pairs(path: Path) -> Iterator[tuple[str, str] | None]:
    """Yield gold and predicted tag of each token, and None for each boundary."""
    separator, columns = "", 0
    with path.open("rb") as file:
        for line_number, raw in enumerate(file, start=1):
            line = (raw.removeprefix(b"\xef\xbb\xbf") if line_number == 1 else raw).rstrip(b"\r\n \t")
            if b"\r" in line:
                raise DataFileError(
                    f"{path}:{line_number}: a CR inside the line. End lines with LF, or with CR and LF."
                )
            text = line.decode("utf-8", errors="surrogateescape")
            if not text:
                yield None
                continue
            separator = separator or ("\t" if "\t" in text else " ")
            fields = text.split(separator)
            columns = columns or len(fields)
            if len(fields) != columns or columns < 2:
                raise DataFileError(f"{path}:{line_number}: {_wrong_columns(fields, columns, separator)}")
            if fields[0] == _BOUNDARY:
                yield None
                continue
            gold, predicted = fields[-2].strip(" "), fields[-1].strip(" ")
            for tag in (gold, predicted):
                if not tag.isprintable():
                    raise DataFileError(f"{path}:{line_number}: tag {quoted(tag)} is not printable. Write it in UTF-8.")
            yield gold, predicted


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
