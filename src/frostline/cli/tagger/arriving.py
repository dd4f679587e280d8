"""Lines of a file as they arrive, so that who writes one line and waits gets an answer to it.

The idea: what one read gives is taken as it is: many lines of a file, one of somebody who types. Where nothing more is
at hand, what came so far is worked on before the next read, which may wait as long as the writer does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from io import BufferedIOBase
from typing import TypeVar

_READ = 1 << 18  # bytes at a time, at most
_CHUNK = 512  # items at a time: enough to batch by length, little to hold
Item = TypeVar("Item")


class Arriving:
    """Iterates over the lines of a binary file, without their LF.

    Args:
        file: Open for reading, buffered.
    """

    def __init__(self, file: BufferedIOBase) -> None:
        self._file = file
        self._lines: deque[bytes] = deque()
        self._begun: list[bytes] = []  # pieces of a line whose end has not come

    def __iter__(self) -> Iterator[bytes]:
        """Return itself."""
        return self

    def __next__(self) -> bytes:
        """Return the next line; it may have to be waited for."""
        while not self._lines:
            data = self._file.read1(_READ) or (b"\n" if self._begun else b"")
            if not data:
                raise StopIteration
            *whole, rest = data.split(b"\n")
            if whole:
                self._lines.extend([b"".join([*self._begun, whole[0]]), *whole[1:]])
                self._begun = []
            if rest:
                self._begun.append(rest)
        return self._lines.popleft()

    def chunks(self, items: Iterator[Item]) -> Iterator[list[Item]]:
        """Yield what is made of the lines, in lists: as much as is at hand, at most 512 of them.

        Args:
            items: Made of these lines, one by one.
        """
        chunk: list[Item] = []
        for item in items:
            chunk.append(item)
            if not self._lines or len(chunk) == _CHUNK:
                yield chunk
                chunk = []
        if chunk:
            yield chunk
