"""Many words in one piece of memory, found by hash.

Letters used for shapes in this file:
    V  words          B  bytes of all words together          Q  words that are looked up

The idea: keep the UTF-8 of all words back to back (B bytes), V + 1 offsets into it, and the sorted 64-bit hashes of
the words with the row of each. All four are plain arrays, so they can be memory-mapped: opening four million words
costs nothing, a word is decoded when somebody asks for it, and a look-up is a binary search followed by a comparison
of the actual bytes. The hash depends on the bytes alone, so it is the same in every process and on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]

_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 2**64)
_PIECE = 65_536  # words hashed at a time: small enough to stay in the processor's cache


def _powers(base: int, count: int) -> Hashes:
    table = np.full(count, base, dtype=np.uint64)
    table[:1] = 1
    return np.multiply.accumulate(table, dtype=np.uint64)


def hash_words(blob: Bytes, offsets: Ints) -> Hashes:
    """The 64-bit hash of every word, shape (V,): the sum of (byte + 1) * BASE^position modulo 2^64."""
    hashes = np.empty(len(offsets) - 1, dtype=np.uint64)
    for first in range(0, len(hashes), _PIECE):
        cuts = np.asarray(offsets[first : first + _PIECE + 1])
        piece = np.asarray(blob[cuts[0] : cuts[-1]])
        cuts = cuts - cuts[0]
        sums = np.zeros(len(piece) + 1, dtype=np.uint64)
        np.cumsum((piece.astype(np.uint64) + np.uint64(1)) * _powers(_BASE, len(piece)), out=sums[1:])
        back = _powers(_INVERSE, len(piece) + 1)  # brings the power at a word's start back to BASE^0
        hashes[first : first + _PIECE] = (sums[cuts[1:]] - sums[cuts[:-1]]) * back[cuts[:-1]]
    return hashes


def hash_word(word: bytes) -> int:
    """The same hash of one word, from its last byte to its first."""
    found = 0
    for byte in reversed(word):
        found = (found * _BASE + byte + 1) % 2**64
    return found


def pack(words: Iterable[str]) -> tuple[Bytes, Ints]:
    """The UTF-8 of `words` back to back, shape (B,), and the offsets, shape (V + 1,); TypeError unless all are str."""
    if isinstance(words, str):
        raise TypeError(f"words: {words!r} is one string, not a sequence of strings. Pass `[word]`.")
    words = list(words)
    try:
        encoded = [word.encode("utf-8", "surrogatepass") for word in words]
    except AttributeError:
        place = next(place for place, word in enumerate(words) if not isinstance(word, str))
        raise TypeError(
            f"words: {words[place]!r} in place {place} is of type {type(words[place]).__name__}. Every word is a str."
        ) from None
    blob = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    return blob, np.fromiter(accumulate(map(len, encoded), initial=0), dtype=np.int64, count=len(encoded) + 1)


def take(blob: Bytes, offsets: Ints, rows: Ints) -> tuple[Bytes, Ints]:
    """The words of `rows`, packed anew."""
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    cuts = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(lengths, out=cuts[1:])
    places = np.arange(cuts[-1]) + np.repeat(starts - cuts[:-1], lengths)
    return blob[places], cuts


def repeated_rows(blob: Bytes, offsets: Ints, hashes: Hashes, order: Ints) -> Ints:
    """The rows, in order, whose word stands in an earlier row already. `order` sorts `hashes`."""
    ranked = hashes[order]
    suspects = np.flatnonzero(ranked[1:] == ranked[:-1])
    groups: dict[int, list[int]] = {}
    for place in suspects.tolist():
        groups.setdefault(int(ranked[place]), [int(order[place])]).append(int(order[place + 1]))
    found: list[int] = []
    for rows in groups.values():
        seen: set[bytes] = set()
        for row in sorted(rows):
            word = blob[offsets[row] : offsets[row + 1]].tobytes()
            if word in seen:
                found.append(row)
            seen.add(word)
    return np.array(sorted(found), dtype=np.int64)


class Words(Sequence[str]):
    """A read-only sequence of V different words that knows the row of each.

    Args:
        blob: The UTF-8 of all words back to back, uint8, shape (B,).
        offsets: Where each word starts and the last ends, int64, shape (V + 1,).
        hashes: The words' hashes in ascending order, uint64, shape (V,).
        order: The row of each of `hashes`, int64, shape (V,).

    The arrays are kept, not copied, and may be memory-mapped.

    Cost: nothing to make; one decoded word per index; O(Q log V) for Q look-ups.

    Example:
        >>> words = Words.of(["frost", "line"])
        >>> words[1], words.rows_of(["line", "snow"]).tolist()
        ('line', [1, -1])
    """

    def __init__(self, blob: Bytes, offsets: Ints, hashes: Hashes, order: Ints) -> None:
        self.blob, self.offsets, self.hashes, self.order = blob, offsets, hashes, order

    @classmethod
    def of(cls, words: Iterable[str]) -> Words:
        """Pack and index different words given as Python strings."""
        return cls.indexed(*pack(words))

    @classmethod
    def indexed(cls, blob: Bytes, offsets: Ints) -> Words:
        """Index different words that are packed already."""
        hashes = hash_words(blob, offsets)
        order = np.argsort(hashes)
        return cls(blob, offsets, hashes[order], order.astype(np.int64))

    def __len__(self) -> int:
        return len(self.hashes)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = range(len(self))[index]  # negative indices and IndexError as in a list
        return bytes(self.blob[self.offsets[row] : self.offsets[row + 1]]).decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _PIECE):
            cuts = self.offsets[first : first + _PIECE + 1].tolist()
            piece = self.blob[cuts[0] : cuts[-1]].tobytes()
            for start, end in pairwise(cuts):
                yield piece[start - cuts[0] : end - cuts[0]].decode("utf-8", "surrogatepass")

    def __add__(self, other: Words) -> Words:
        """The words of both, these first; all of them must differ. A copy."""
        blob = np.concatenate([self.blob, other.blob])
        return Words.indexed(blob, np.concatenate([self.offsets, other.offsets[1:] + len(self.blob)]))

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and self.row_of(word) >= 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(repr(word) for word in self[:3])
        return f"Words({len(self):,}: {shown}{', ...' if len(self) > 3 else ''})"

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """The row of the word `value`, as `list.index`, by hash."""
        row = self.row_of(value) if isinstance(value, str) else -1
        if row < 0 or row not in range(*slice(start, stop).indices(len(self))):
            raise ValueError(f"{value!r} is not among the {len(self):,} words")
        return row

    def row_of(self, word: str) -> int:
        """The row of one word, or -1: `rows_of` without the arrays, which take longer for a few."""
        raw = word.encode("utf-8", "surrogatepass")
        wanted = hash_word(raw)
        place = int(self.hashes.searchsorted(np.uint64(wanted)))
        return self._search(raw, place) if place < len(self) and int(self.hashes[place]) == wanted else -1

    def rows_of(self, words: Sequence[str]) -> Ints:
        """The row of each word, int64, shape (Q,); -1 where it is missing. Spelling must agree exactly."""
        if not len(self):
            return np.full(len(words), -1, dtype=np.int64)
        blob, offsets = pack(words)
        wanted = hash_words(blob, offsets)
        places = np.minimum(np.searchsorted(self.hashes, wanted), len(self) - 1)
        asked = np.flatnonzero(self.hashes[places] == wanted)
        found = np.full(len(words), -1, dtype=np.int64)
        found[asked] = self.order[places[asked]]
        for number in asked[~self._agree(found[asked], *take(blob, offsets, asked))]:
            word = blob[offsets[number] : offsets[number + 1]].tobytes()
            found[number] = self._search(word, int(places[number]))
        return found

    def _agree(self, rows: Ints, blob: Bytes, offsets: Ints) -> NDArray[np.bool_]:
        """Whether each row's bytes are those of the packed words, bool, shape (Q,)."""
        agree: NDArray[np.bool_] = self.offsets[rows + 1] - self.offsets[rows] == np.diff(offsets)
        mine, _ = take(self.blob, self.offsets, rows[agree])
        theirs, cuts = take(blob, offsets, np.flatnonzero(agree))
        wrong = np.zeros(len(theirs) + 1, dtype=np.int64)
        np.cumsum(mine != theirs, out=wrong[1:])
        agree[agree] = wrong[cuts[1:]] == wrong[cuts[:-1]]
        return agree

    def _search(self, word: bytes, place: int) -> int:
        """Among the words whose hash is that at `place` and after it, the row of `word`, or -1."""
        for other in range(place, len(self)):
            if self.hashes[other] != self.hashes[place]:
                break
            row = int(self.order[other])
            if self.blob[self.offsets[row] : self.offsets[row + 1]].tobytes() == word:
                return row
        return -1
