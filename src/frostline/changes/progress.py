"""How far the reading of large files is, on stderr: one line, overwritten on a terminal; plain lines in a pipe."""

from __future__ import annotations

import sys
import time

_PAUSE = {True: 0.2, False: 30.0}  # seconds between two lines, by whether stderr is a terminal
_WIDTH = 60


class Progress:
    """Prints what was read, how fast, and how long the rest will take; nothing for what is done at once.

    Args:
        done: The verb of the line: "compared", "read".
    """

    def __init__(self, done: str) -> None:
        self._verb, self._terminal = done, sys.stderr.isatty()
        self._started = time.monotonic()
        self._due = self._started + max(1.0, _PAUSE[self._terminal])
        self._printed = False

    def __enter__(self) -> Progress:
        return self

    def __call__(self, done: int, total: int) -> None:
        """Print that `done` of `total` bytes are done, if a line is due."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + _PAUSE[self._terminal]
        rate = done / (now - self._started)
        left = (total - done) / rate if rate else 0.0
        line = f"{self._verb} {done / 1e9:.2f} of {total / 1e9:.2f} GB, {rate / 1e9:.2f} GB/s, {left:.0f} s left"
        print(
            f"\r{line:<{_WIDTH}}" if self._terminal else line,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )
        self._printed = True

    def __exit__(self, *error: object) -> None:
        if self._printed and self._terminal:
            print(f"\r{'':<{_WIDTH}}\r", end="", file=sys.stderr, flush=True)
