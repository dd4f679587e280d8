"""Word vectors: V words and a matrix with one row for each, in memory or memory-mapped.

Letters used for shapes in this file:
    V  words          D  dimensions of a vector          Q  words to look up          n  words of a chunk
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from frostline.errors import ShapeError
from frostline.vectors.words import Bytes, Ints, Words, gather, hash_words, repeated_rows

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float32]
_SHOWN, _LONG = 5, 40  # repeated words in a message, and characters of one
_BLOCK = 4096  # repeated rows compared at a time


class Duplicates(NamedTuple):
    """Words that a file lists more than once, of which the first vector is used.

    Attributes:
        total: How many words of the file were dropped.
        conflicting: How many of them have another vector than the first with that word.
        first: The first few of them, at most five: those with another vector, if there are any.
    """

    total: int = 0
    conflicting: int = 0
    first: tuple[str, ...] = ()

    def __str__(self) -> str:
        kind = "with another vector" if self.conflicting else "with the same vector"
        count = self.conflicting or self.total
        shown = ", ".join(map(repr, self.first)) + (", ..." if count > len(self.first) else "")
        return f"{count:,} {'word is' if count == 1 else 'words are'} listed again {kind}: {shown}"


class Vectors:
    """V words and their vectors.

    Args:
        words: V distinct strings, in the order of the rows.
        matrix: The vectors, shape (V, D): anything that numpy can convert to finite float32, or a torch tensor, such as
            the weight of a model. A float32 array is not copied; a tensor is, so that training goes on beside it.

    Attributes:
        words: A sequence of V strings (`words[3]`, `len`, `in`, `index`, iteration), decoded on access.
        matrix: float32, shape (V, D). After `load` it is read-only and memory-mapped: rows are read from disk when they
            are used. `numpy.array(vectors.matrix)` is a writable copy.

    Raises:
        ShapeError: The lengths of `words` and `matrix` differ, a word is repeated, or a value is not finite.

    Cost: one pass over the words and the matrix; `load` avoids both.

    Example:
        >>> vectors = Vectors(["ice", "snow"], [[1.0, 0.0], [0.5, 0.5]])
        >>> vectors["snow"], "rain" in vectors, vectors.rows_of(["Ice", "rain"], lowercase=True).tolist()
        (array([0.5, 0.5], dtype=float32), False, [0, -1])
    """

    def __init__(self, words: Sequence[str], matrix: ArrayLike | Tensor) -> None:
        if hasattr(matrix, "detach"):  # a tensor; torch is not imported here
            matrix = matrix.detach().float().cpu().numpy().copy()
        with np.errstate(over="ignore"):
            self.matrix: Floats = np.asarray(matrix, dtype=np.float32)
        self.duplicates = Duplicates()
        if self.matrix.ndim != 2 or len(self.matrix) != len(words):
            raise ShapeError(
                f"matrix: has shape {self.matrix.shape} for {len(words):,} words. "
                f"It needs one row for each word: ({len(words)}, D)."
            )
        if not np.isfinite(self.matrix).all():
            row = int(np.flatnonzero(~np.isfinite(self.matrix).all(axis=1))[0])
            raise ShapeError(
                f"matrix: row {row} ({words[row]!r}) holds a value that is not finite. "
                "Every value must be a finite float32; pass `numpy.nan_to_num(matrix)` to replace nan by 0."
            )
        self.words = words if isinstance(words, Words) else Words.of(words)
        repeats, _ = repeated_rows(self.words.blob, self.words.offsets, *self._in_row_order())
        if len(repeats):
            raise ShapeError(
                f"words: {len(repeats):,} listed more than once, the first is {self.words[int(repeats[0])]!r} "
                f"in row {repeats[0]}. Each word may have one row; keep only its first."
            )

    def _in_row_order(self) -> tuple[NDArray[np.uint64], Ints]:
        hashes = np.empty_like(self.words.hashes)
        hashes[self.words.order] = self.words.hashes
        return hashes, self.words.order

    @classmethod
    def unchecked(cls, words: Words, matrix: Floats, duplicates: Duplicates = Duplicates()) -> Vectors:  # noqa: B008
        """Return Vectors of parts that a reader has already checked; reads and copies nothing."""
        vectors = cls.__new__(cls)
        vectors.words, vectors.matrix, vectors.duplicates = words, matrix, duplicates
        return vectors

    @property
    def dimension(self) -> int:
        """The width D of a vector."""
        return int(self.matrix.shape[1])

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self.words

    def __getitem__(self, word: str) -> Floats:
        """Return the vector of `word`, float32, shape (D,): a copy of its row. KeyError if the word is missing."""
        row = self.words.row_of(word)
        if row < 0:
            raise KeyError(f"{word!r} is not among the {len(self):,} words; `word in vectors` tests without an error")
        return np.array(self.matrix[row])

    def __repr__(self) -> str:
        return f"Vectors({len(self):,} words x {self.dimension})"

    def rows_of(self, words: Sequence[str], lowercase: bool = False) -> Ints:
        """Return the row of each word, for indexing `matrix`.

        Args:
            words: Q strings, repeated or not.
            lowercase: Look up a missing word as `word.lower()`, too.

        Returns:
            int64, shape (Q,), from 0 to V - 1, and -1 where the word is missing.

        Cost: O(Q log V).

        Example:
            >>> Vectors(["ice", "snow"], [[1.0], [2.0]]).rows_of(["snow", "ICE"]).tolist()
            [1, -1]
        """
        rows = self.words.rows_of(words)
        if lowercase:
            missing = np.flatnonzero(rows < 0)
            rows[missing] = self.words.rows_of([words[index].lower() for index in missing.tolist()])
        return rows


class Chunk(NamedTuple):
    """A part of a file, as every reader yields it: n words and their vectors."""

    words: bytes  # UTF-8, back to back
    lengths: Ints  # (n,), bytes of each word
    matrix: Floats  # (n, D)
    lines: int  # how many lines of text this part took; 0 in a binary file


class WordCollector:
    """Collects the words of a file's chunks (at least one chunk) and drops all but the first of repeated words."""

    def __init__(self) -> None:
        self._blobs: list[bytes] = []
        self._lengths: list[Ints] = []
        self._hashes: list[NDArray[np.uint64]] = []

    def add(self, chunk: Chunk) -> None:
        """Add the words of a chunk."""
        self._blobs.append(chunk.words)
        self._lengths.append(chunk.lengths)
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(chunk.lengths)])
        self._hashes.append(hash_words(np.frombuffer(chunk.words, dtype=np.uint8), offsets))

    def finish(self) -> tuple[Words, Repeats | None]:
        """Return the distinct words, and which rows are repeats (None: no row)."""
        blob: Bytes = np.frombuffer(b"".join(self._blobs), dtype=np.uint8)
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.concatenate(self._lengths))])
        hashes = np.concatenate(self._hashes)
        order: Ints = np.argsort(hashes).astype(np.int64)
        repeated, first = repeated_rows(blob, offsets, hashes, order)
        if not len(repeated):
            return Words(blob, offsets, hashes[order], order), None
        kept = np.setdiff1d(np.arange(len(hashes)), repeated, assume_unique=True)
        return Words.from_packed(*gather(blob, offsets, kept)), Repeats(len(hashes), kept, repeated, first)


class Repeats(NamedTuple):
    """Rows of a file whose word is already in an earlier row."""

    words: int  # of the file, repeats included
    kept: Ints  # rows that are no repeats, ascending
    repeated: Ints
    first: Ints  # the row of the same word that is kept, for each of `repeated`

    def describe(self, words: Words, matrix: Floats) -> Duplicates:
        """Return what to say of them, given the distinct words and the matrix with all rows."""
        conflicts = np.concatenate(
            [
                (matrix[self.repeated[block]] != matrix[self.first[block]]).any(axis=1)
                for block in (slice(start, start + _BLOCK) for start in range(0, len(self.repeated), _BLOCK))
            ]
        )
        of_interest = self.first[conflicts] if conflicts.any() else self.first
        rows = np.searchsorted(self.kept, list(dict.fromkeys(of_interest.tolist()))[:_SHOWN])
        shown = [words[row] if len(words[row]) <= _LONG else words[row][: _LONG - 3] + "..." for row in rows.tolist()]
        return Duplicates(len(self.repeated), int(conflicts.sum()), tuple(shown))


def in_memory(chunks: Iterable[Chunk]) -> Vectors:
    """Return all chunks of a file as Vectors in memory."""
    collector, parts = WordCollector(), []
    for chunk in chunks:
        collector.add(chunk)
        parts.append(chunk.matrix)
    words, repeats = collector.finish()
    matrix = np.concatenate(parts)
    if repeats is None:
        return Vectors.unchecked(words, matrix)
    return Vectors.unchecked(words, matrix[repeats.kept], repeats.describe(words, matrix))


def release_pages(array: NDArray[Any]) -> None:
    """Release the pages of a memory-mapped file that this process has read; the array stays valid.

    Args:
        array: Any view of `numpy.memmap(..., mode="r")`, such as the matrix that `load` returns. Other arrays are left
            alone.

    Cost: a system call. Pages that are used later are read again, usually from the system's page cache.
    """
    owner: Any = array
    read_only = False  # pages of a writable mapping may hold unsaved values, which MADV_DONTNEED would discard
    while isinstance(owner, np.ndarray):
        read_only = read_only or (isinstance(owner, np.memmap) and owner.mode == "r")
        owner = owner.base
    if read_only and hasattr(mmap.mmap, "madvise"):
        owner.madvise(mmap.MADV_DONTNEED)
