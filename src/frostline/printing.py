"""Text for people: a table in plain characters, and a list of names that is cut short."""

from __future__ import annotations

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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = (
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    rule = "-" * max(map(len, lines))
    lines.insert(1, rule)
    if total:
        lines.insert(-1, rule)
    return "\n".join(lines)


def listed(names: Iterable[str], most: int) -> str:
    """Return `names` separated by commas: the first `most` of them, then how many more there are.

    Example:
        >>> listed(["a", "b", "c"], most=3), listed(["a", "b", "c"], most=1)
        ('a, b, c', 'a and 2 more')
    """
    names = list(names)
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
