"""Pieces of text to ids: each word gets the number of words that were seen before it for the first time.

Words are separated by ASCII whitespace, as `bytes.split` does; a line feed ends a line, which becomes -1. encoder.cpp
does the same some twenty times as fast, and is used where it can be compiled.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from ctypes import CDLL, POINTER, c_int32, string_at
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from frostline.word2vec import compiled

Ids = NDArray[np.int32]
Counts = NDArray[np.int64]

_LONGEST = 65_535  # bytes of a word
_WRONG = {
    -1: "not UTF-8 text. Unpack it if it is packed (.gz is unpacked here), or convert it: iconv -f latin1 -t utf-8",
    -2: "holds a NUL byte, so it is not UTF-8 text. Convert it: iconv -f utf-16 -t utf-8",
    -3: f"a word is longer than {_LONGEST:,} bytes. Words are separated by spaces; is this text?",
    -4: "more than 2,147,483,647 different words. Divide the text",
}


class BadText(Exception):
    """Text that cannot be read; the message says why, and `line` where."""

    def __init__(self, code: int, line: int) -> None:
        super().__init__(_WRONG[code])
        self.line = line


class Encoder(Protocol):
    """Encodes one text, piece by piece."""

    def feed(self, piece: bytes) -> Ids:
        """Return the ids of a piece; a word that goes on in the next piece comes with that one.

        Raises:
            BadText: It holds something that is not a word.
        """

    def vocabulary(self) -> tuple[list[str], Counts]:
        """Return the words by id, and how often each occurred."""


def encoder() -> Encoder:
    """Return the fastest encoder that works here."""
    library = compiled.encoder()
    return PythonEncoder() if library is None else CompiledEncoder(library)


class PythonEncoder:
    """The encoder in plain Python."""

    def __init__(self) -> None:
        self._ids: dict[bytes, int] = {}
        self._counts = np.zeros(0, dtype=np.int64)
        self._rest = b""
        self._open = False  # whether the line has a word
        self._lines = 0

    def feed(self, piece: bytes) -> Ids:  # noqa: D102
        text = self._rest + piece
        whole = len(text) - len(text.split()[-1]) if text and not text[-1:].isspace() else len(text)
        text, self._rest = text[:whole], text[whole:]
        ids: list[int] = []
        lines = text.split(b"\n")
        for number, line in enumerate(lines):
            for word in line.split():
                ids.append(self._id(word))
                self._open = True
            if number < len(lines) - 1:
                if self._open:
                    ids.append(-1)
                self._open = False
                self._lines += 1
        if len(self._rest) > _LONGEST:
            raise BadText(-3, self._lines + 1)
        found = np.array(ids, dtype=np.int32)
        more = np.bincount(found[found >= 0], minlength=len(self._ids))
        more[: len(self._counts)] += self._counts
        self._counts = more
        return found

    def _id(self, word: bytes) -> int:
        found = self._ids.get(word)
        if found is not None:
            return found
        if b"\0" in word:
            raise BadText(-2, self._lines + 1)
        try:
            word.decode()
        except UnicodeDecodeError:
            raise BadText(-1, self._lines + 1) from None
        if len(word) > _LONGEST:
            raise BadText(-3, self._lines + 1)
        return self._ids.setdefault(word, len(self._ids))

    def vocabulary(self) -> tuple[list[str], Counts]:  # noqa: D102
        return [word.decode() for word in self._ids], self._counts


class CompiledEncoder:
    """The encoder of encoder.cpp."""

    def __init__(self, library: CDLL) -> None:
        self._library = library
        self._encoder: int = library.frostline_encoder()
        weakref.finalize(self, library.frostline_encoder_free, self._encoder)

    def feed(self, piece: bytes) -> Ids:  # noqa: D102
        ids = np.empty(len(piece) + 1, dtype=np.int32)
        to = ids.ctypes.data_as(POINTER(c_int32))
        count: int = self._library.frostline_encoder_feed(self._encoder, piece, len(piece), to)
        if count < 0:
            raise BadText(count, self._library.frostline_encoder_lines(self._encoder) + 1)
        return ids[:count]

    def vocabulary(self) -> tuple[list[str], Counts]:  # noqa: D102
        library, encoder = self._library, self._encoder
        count: int = library.frostline_encoder_words(encoder)
        raw = string_at(library.frostline_encoder_offsets(encoder), 8 * (count + 1))
        offsets = np.frombuffer(raw, dtype=np.int64)
        counts = np.frombuffer(string_at(library.frostline_encoder_counts(encoder), 8 * count), dtype=np.int64)
        text = string_at(library.frostline_encoder_bytes(encoder), int(offsets[-1]))
        return list(_decoded(text, offsets.tolist())), counts


def _decoded(text: bytes, offsets: list[int]) -> Iterator[str]:
    for start, end in pairwise(offsets):
        yield text[start:end].decode()
