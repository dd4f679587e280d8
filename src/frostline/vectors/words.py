"""Many words in one piece of memory, found by hash.

Letters used for shapes in this file:
    V  words          B  bytes of all words together          Q  words to look up

The idea: keep the UTF-8 bytes of all words back to back (B bytes), V + 1 offsets into them, and the sorted 64-bit
hashes of the words with the row of each. All four are plain arrays, so they can be memory-mapped: opening four million
words costs nothing, a word is decoded when it is accessed, and a look-up is a binary search followed by a comparison of
the actual bytes. The hash depends on the bytes alone, so it is the same in every process and on every machine.
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
_BASE_INVERSE = pow(_BASE, -1, 2**64)
_BLOCK = 65_536  # words hashed at a time: small enough to stay in the CPU cache


def _powers(base: int, count: int) -> Hashes:
    table = np.full(count, base, dtype=np.uint64)
    table[:1] = 1
    return np.multiply.accumulate(table, dtype=np.uint64)


def hash_words(blob: Bytes, offsets: Ints) -> Hashes:
    """Return the 64-bit hash of every word, shape (V,): the sum of (byte + 1) * BASE^position modulo 2^64."""
    hashes = np.empty(len(offsets) - 1, dtype=np.uint64)
    for first in range(0, len(hashes), _BLOCK):
        bounds = np.asarray(offsets[first : first + _BLOCK + 1])
        block = np.asarray(blob[bounds[0] : bounds[-1]])
        bounds = bounds - bounds[0]
        # One running sum serves all words: a word's sum is the difference at its ends, and its powers begin at
        # BASE^start, so a multiplication by BASE^-start makes them begin at BASE^0.
        sums = np.zeros(len(block) + 1, dtype=np.uint64)
        np.cumsum((block.astype(np.uint64) + np.uint64(1)) * _powers(_BASE, len(block)), out=sums[1:])
        inverses = _powers(_BASE_INVERSE, len(block) + 1)
        hashes[first : first + _BLOCK] = (sums[bounds[1:]] - sums[bounds[:-1]]) * inverses[bounds[:-1]]
    return hashes


def hash_word(word: bytes) -> int:
    """Return the same hash for a single word, by Horner's rule from its last byte to its first."""
    result = 0
    for byte in reversed(word):
        result = (result * _BASE + byte + 1) % 2**64
    return result


def pack(words: Iterable[str]) -> tuple[Bytes, Ints]:
    """Return the UTF-8 of `words` back to back, (B,), and the offsets, (V + 1,); TypeError unless all are str."""
    if isinstance(words, str):
        raise TypeError(f"words: {words!r} is one string, not a sequence of strings. Pass `[word]`.")
    words = list(words)
    try:
        encoded = [word.encode("utf-8", "surrogatepass") for word in words]
    except AttributeError:
        index, word = next((index, word) for index, word in enumerate(words) if not isinstance(word, str))
        raise TypeError(
            f"words: expected strings, got {word!r} of type {type(word).__name__} at index {index}."
        ) from None
    blob = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    return blob, np.fromiter(accumulate(map(len, encoded), initial=0), dtype=np.int64, count=len(encoded) + 1)


def gather(blob: Bytes, offsets: Ints, rows: Ints) -> tuple[Bytes, Ints]:
    """Return the words of `rows`, packed like `pack` does."""
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    new_offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(lengths, out=new_offsets[1:])
    index = np.arange(new_offsets[-1]) + np.repeat(starts - new_offsets[:-1], lengths)  # of each byte in `blob`
    return blob[index], new_offsets


def repeated_rows(blob: Bytes, offsets: Ints, hashes: Hashes, order: Ints) -> tuple[Ints, Ints]:
    """Return the rows, in order, whose word is already in an earlier row, and the first row of each of these words.

    `order` sorts `hashes`.
    """
    ranked = hashes[order]
    suspects = np.flatnonzero(ranked[1:] == ranked[:-1])  # equal hashes: repeated words, or collisions
    groups: dict[int, list[int]] = {}
    for rank in suspects.tolist():
        groups.setdefault(int(ranked[rank]), [int(order[rank])]).append(int(order[rank + 1]))
    repeats: dict[int, int] = {}
    for rows in groups.values():
        seen: dict[bytes, int] = {}
        for row in sorted(rows):
            first = seen.setdefault(blob[offsets[row] : offsets[row + 1]].tobytes(), row)
            if first != row:
                repeats[row] = first
    found = np.array(sorted(repeats.items()), dtype=np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


class Words(Sequence[str]):
    """A read-only sequence of V distinct words with a fast look-up of each word's row.

    Args:
        blob: The UTF-8 bytes of all words back to back, uint8, shape (B,).
        offsets: Where each word starts and the last ends, int64, shape (V + 1,).
        hashes: The words' hashes in ascending order, uint64, shape (V,).
        order: The row of each of `hashes`, int64, shape (V,).

    The arrays are not copied and may be memory-mapped.

    Cost: constructing it is free; an index decodes one word; Q look-ups take O(Q log V).

    Example:
        >>> words = Words.of(["frost", "line"])
        >>> words[1], words.rows_of(["line", "snow"]).tolist()
        ('line', [1, -1])
    """

    def __init__(self, blob: Bytes, offsets: Ints, hashes: Hashes, order: Ints) -> None:
        self.blob, self.offsets, self.hashes, self.order = blob, offsets, hashes, order

    @classmethod
    def of(cls, words: Iterable[str]) -> Words:
        """Pack and index distinct Python strings."""
        return cls.from_packed(*pack(words))

    @classmethod
    def from_packed(cls, blob: Bytes, offsets: Ints) -> Words:
        """Index distinct words that are already packed."""
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
        for first in range(0, len(self), _BLOCK):
            bounds = self.offsets[first : first + _BLOCK + 1].tolist()
            block = self.blob[bounds[0] : bounds[-1]].tobytes()
            for start, end in pairwise(bounds):
                yield block[start - bounds[0] : end - bounds[0]].decode("utf-8", "surrogatepass")

    def __add__(self, other: Words) -> Words:
        """Return a copy with the words of both, these first; all of them must be distinct."""
        blob = np.concatenate([self.blob, other.blob])
        return Words.from_packed(blob, np.concatenate([self.offsets, other.offsets[1:] + len(self.blob)]))

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and self.row_of(word) >= 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(repr(word) for word in self[:3])
        return f"Words({len(self):,}: {shown}{', ...' if len(self) > 3 else ''})"

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """Return the row of the word `value`, like `list.index`, but by hash."""
        row = self.row_of(value) if isinstance(value, str) else -1
        if row < 0 or row not in range(*slice(start, stop).indices(len(self))):
            raise ValueError(f"{value!r} is not among the {len(self):,} words")
        return row

    def row_of(self, word: str) -> int:
        """Return the row of a single word, or -1; faster than `rows_of` for a few words."""
        raw = word.encode("utf-8", "surrogatepass")
        wanted = hash_word(raw)
        rank = int(self.hashes.searchsorted(np.uint64(wanted)))
        return self._search(raw, rank) if rank < len(self) and int(self.hashes[rank]) == wanted else -1

    def rows_of(self, words: Sequence[str]) -> Ints:
        """Return the row of each word, int64, shape (Q,); -1 where it is missing. The spelling must match exactly."""
        if not len(self):
            return np.full(len(words), -1, dtype=np.int64)
        blob, offsets = pack(words)
        wanted = hash_words(blob, offsets)
        ranks = np.minimum(np.searchsorted(self.hashes, wanted), len(self) - 1)
        matches = np.flatnonzero(self.hashes[ranks] == wanted)  # the hash is known; the bytes are still to be compared
        rows = np.full(len(words), -1, dtype=np.int64)
        rows[matches] = self.order[ranks[matches]]
        # A hash may belong to several words (a collision), so where the bytes differ, the next ranks are searched.
        for query in matches[~self._same_bytes(rows[matches], *gather(blob, offsets, matches))]:
            word = blob[offsets[query] : offsets[query + 1]].tobytes()
            rows[query] = self._search(word, int(ranks[query]))
        return rows

    def _same_bytes(self, rows: Ints, blob: Bytes, offsets: Ints) -> NDArray[np.bool_]:
        """Return whether the word of each row equals the packed word, bool, shape (Q,)."""
        same: NDArray[np.bool_] = self.offsets[rows + 1] - self.offsets[rows] == np.diff(offsets)  # equal lengths
        ours, _ = gather(self.blob, self.offsets, rows[same])
        theirs, bounds = gather(blob, offsets, np.flatnonzero(same))
        differing = np.zeros(len(theirs) + 1, dtype=np.int64)
        np.cumsum(ours != theirs, out=differing[1:])
        same[same] = differing[bounds[1:]] == differing[bounds[:-1]]
        return same

    def _search(self, word: bytes, rank: int) -> int:
        """Return the row of `word`, or -1. Its hash is that at `rank`, the first index where `hashes` has it."""
        for other in range(rank, len(self)):
            if self.hashes[other] != self.hashes[rank]:
                break
            row = int(self.order[other])
            if self.blob[self.offsets[row] : self.offsets[row + 1]].tobytes() == word:
                return row
        return -1
