"""How the demo speaks: headings, sentences and tables; colour on a terminal, plain lines in a pipe."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from frostline.errors import MissingExtraError

if TYPE_CHECKING:
    import rich.console

WIDTH = 100


class Voice:
    """Prints to stdout as it is when the voice is made; rich is used on a terminal only.

    Example:
        >>> Voice().table(["word", "moved"], [["frost", "0.00"], ["line", "1.25"]])
          word   moved
          frost   0.00
          line    1.25
    """

    def __init__(self) -> None:
        self.console: rich.console.Console | None = None
        self._width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
        if sys.stdout.isatty():
            try:
                from rich.console import Console
            except ImportError:
                raise MissingExtraError("the demo needs rich. Install it: pip install 'frostline[demo]'") from None
            self.console = Console(highlight=False, width=self._width)

    def heading(self, text: str) -> None:
        """A line that opens a step."""
        if self.console:
            self.console.print(f"\n{text}", style="bold cyan", markup=False)
        else:
            print(f"\n{text}", flush=True)

    def say(self, text: str) -> None:
        """A sentence or more, wrapped and indented by two."""
        print(textwrap.fill(text, self._width, initial_indent="  ", subsequent_indent="  "), flush=True)

    def lines(self, text: str) -> None:
        """Lines as they are, indented by two."""
        print(textwrap.indent(text, "  "), flush=True)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table: the first column to the left, numbers to the right, words to the left.

        Args:
            head: The title of each column.
            rows: Cells as text, as many in each row as in `head`.
        """
        right = [index > 0 and all(row[index][:1] in "-+0123456789" for row in rows) for index in range(len(head))]
        if self.console:
            from rich import box
            from rich.table import Table

            table = Table(box=box.SIMPLE_HEAD, pad_edge=True, header_style="bold")
            for title, is_number in zip(head, right, strict=True):
                table.add_column(title, justify="right" if is_number else "left", no_wrap=title == head[0])
            for row in rows:
                table.add_row(*[cell.replace("[", r"\[") for cell in row])
            self.console.print(table)
            return
        widths = [max(len(row[index]) for row in [head, *rows]) for index in range(len(head))]
        for row in [head, *rows]:
            cells = (
                cell.rjust(width) if is_number else cell.ljust(width)
                for cell, width, is_number in zip(row, widths, right, strict=True)
            )
            print("  " + "  ".join(cells).rstrip(), flush=True)
