"""Text for people: a table in plain characters, and a list of names that is cut short."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Sequence


def text_table(rows: Sequence[Sequence[str]], *, right: Collection[int] = (), total: bool = False) -> str:
    """Return `rows` as lines of text, their columns aligned, with a rule under the first row.

    Args:
        rows: The titles of the columns, then the rows, each with a cell for every column.
        right: Indices of the columns that are aligned to the right, such as numbers.
        total: Whether the last row is a sum; it then gets a rule above it.

    Example:
        >>> print(text_table([("word", "moved"), ("frost", "0.00"), ("line", "1.25")], right=[1]))
        word   moved
        ------------
        frost   0.00
        line    1.25
    """
    widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = []
        for index, (text, width) in enumerate(zip(row, widths, strict=True)):
            spaces = " " * (width - cells(text))
            padded.append(spaces + text if index in right else text + spaces)
        lines.append("  ".join(padded).rstrip())
    rule = "-" * max(map(cells, lines))
    lines.insert(1, rule)
    if total:
        lines.insert(-1, rule)
    return "\n".join(lines)


def cells(text: str) -> int:
    """Return how many cells of a terminal a text takes: two for wide characters (Chinese, emoji), none for accents.

    Example:
        >>> cells("frost"), cells("\u971c"), cells("e\u0301")
        (5, 2, 1)
    """
    if text.isascii():
        return len(text)
    return sum(_cells(letter) for letter in text)


def shortened(text: str, most: int) -> str:
    """Return a text that takes at most so many cells, 3 or more, with dots at the end where it was longer.

    Example:
        >>> shortened("frostline", 8), shortened("\u971c\u971c\u971c", 5)
        ('frost...', '\u971c...')
    """
    if cells(text) <= most:
        return text
    while cells(text) > most - 3:
        text = text[:-1]
    return text + "..."


def _cells(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def listed(names: Iterable[str], most: int) -> str:
    """Return `names` separated by commas: the first `most` of them, then how many more there are.

    Example:
        >>> listed(["a", "b", "c"], most=3), listed(["a", "b", "c"], most=1)
        ('a, b, c', 'a and 2 more')
    """
    names = list(names)
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
