"""Word vectors: words and one row of numbers for each.

Letters used for shapes in this file:
    V  words          D  numbers of a word          Q  words that are looked up

Memory that a mapped file takes while it is read: given back when the reader is done.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from frostline.errors import ShapeError
from frostline.vectors.words import Bytes, Ints, Words, hash_words, repeated_rows, take

Floats = NDArray[np.float32]


class Vectors:
    """V words and their vectors.

    Args:
        words: V different strings, in the order of the rows.
        matrix: The vectors, shape (V, D), anything that numpy can turn into finite float32; a float32 array is kept,
            not copied.

    Attributes:
        words: A sequence of V strings (`words[3]`, `len`, `in`, `index`, iteration), decoded when asked for.
        matrix: float32, shape (V, D). After `load` it is read-only and memory-mapped: numbers come from the disk
            when they are used. `numpy.array(vectors.matrix)` is a copy that may be written to.

    Raises:
        ShapeError: `words` and `matrix` do not fit together, a word is repeated, or a number is not finite.

    Cost: one pass over the words and the matrix; what `load` returns cost neither.

    Example:
        >>> vectors = Vectors(["ice", "snow"], [[1.0, 0.0], [0.5, 0.5]])
        >>> vectors["snow"], "rain" in vectors, vectors.rows_of(["Ice", "rain"], lowercase=True).tolist()
        (array([0.5, 0.5], dtype=float32), False, [0, -1])
    """

    def __init__(self, words: Sequence[str], matrix: ArrayLike) -> None:
        with np.errstate(over="ignore"):
            self.matrix: Floats = np.asarray(matrix, dtype=np.float32)
        if self.matrix.ndim != 2 or len(self.matrix) != len(words):
            raise ShapeError(
                f"matrix: has shape {self.matrix.shape} for {len(words):,} words. "
                f"It needs one row for each word: ({len(words)}, D)."
            )
        if not np.isfinite(self.matrix).all():
            row = int(np.flatnonzero(~np.isfinite(self.matrix).all(axis=1))[0])
            raise ShapeError(
                f"matrix: row {row} ({words[row]!r}) holds a number that is not finite. "
                "Every number must be a finite float32; pass `numpy.nan_to_num(matrix)` to put 0 in place of nan."
            )
        self.words = words if isinstance(words, Words) else Words.of(words)
        again = repeated_rows(self.words.blob, self.words.offsets, *self._in_row_order())
        if len(again):
            raise ShapeError(
                f"words: {len(again):,} listed more than once, the first is {self.words[int(again[0])]!r} "
                f"in row {again[0]}. Each word may have one row; keep the first of each."
            )

    def _in_row_order(self) -> tuple[NDArray[np.uint64], Ints]:
        hashes = np.empty_like(self.words.hashes)
        hashes[self.words.order] = self.words.hashes
        return hashes, self.words.order

    @classmethod
    def opened(cls, words: Words, matrix: Floats) -> Vectors:
        """What a reader has checked already: kept as it is, nothing read."""
        vectors = cls.__new__(cls)
        vectors.words, vectors.matrix = words, matrix
        return vectors

    @property
    def dimension(self) -> int:
        """How many numbers a word has."""
        return int(self.matrix.shape[1])

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self.words

    def __getitem__(self, word: str) -> Floats:
        """The vector of `word`, float32, shape (D,): a copy of its row. KeyError where the word is missing."""
        row = self.words.row_of(word)
        if row < 0:
            raise KeyError(f"{word!r} is not among the {len(self):,} words; `word in vectors` asks without an error")
        return np.array(self.matrix[row])

    def __repr__(self) -> str:
        return f"Vectors({len(self):,} words x {self.dimension})"

    def rows_of(self, words: Sequence[str], lowercase: bool = False) -> Ints:
        """The row of each word, for indexing `matrix`.

        Args:
            words: Q strings, repeated or not.
            lowercase: Look a word that is missing up again as `word.lower()`.

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
            rows[missing] = self.words.rows_of([words[number].lower() for number in missing.tolist()])
        return rows


class Chunk(NamedTuple):
    """Some words of a file, as every reader yields them: UTF-8 back to back, lengths, numbers, lines read."""

    words: bytes
    lengths: Ints  # (n,)
    matrix: Floats  # (n, D)
    lines: int  # of text read for them


class Gathered:
    """The words of all chunks of a file (at least one chunk), of which the first of each is kept."""

    def __init__(self) -> None:
        self._blobs: list[bytes] = []
        self._lengths: list[Ints] = []
        self._hashes: list[NDArray[np.uint64]] = []

    def add(self, chunk: Chunk) -> None:
        """Take a chunk's words."""
        self._blobs.append(chunk.words)
        self._lengths.append(chunk.lengths)
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(chunk.lengths)])
        self._hashes.append(hash_words(np.frombuffer(chunk.words, dtype=np.uint8), offsets))

    def finish(self) -> tuple[Words, Ints | None]:
        """The words without repetitions, and the rows that stay (None: all of them)."""
        blob: Bytes = np.frombuffer(b"".join(self._blobs), dtype=np.uint8)
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.concatenate(self._lengths))])
        hashes = np.concatenate(self._hashes)
        order: Ints = np.argsort(hashes).astype(np.int64)
        again = repeated_rows(blob, offsets, hashes, order)
        if not len(again):
            return Words(blob, offsets, hashes[order], order), None
        kept = np.setdiff1d(np.arange(len(hashes)), again, assume_unique=True)
        return Words.indexed(*take(blob, offsets, kept)), kept


def in_memory(chunks: Iterable[Chunk]) -> Vectors:
    """All chunks of a file as Vectors in memory."""
    gathered, parts = Gathered(), []
    for chunk in chunks:
        gathered.add(chunk)
        parts.append(chunk.matrix)
    words, kept = gathered.finish()
    matrix = np.concatenate(parts)
    return Vectors.opened(words, matrix if kept is None else matrix[kept])


def give_back(array: NDArray[Any]) -> None:
    """Give the system back the memory that reading a mapped file took, all of it; the array stays what it was.

    Args:
        array: Any view of `numpy.memmap(..., mode="r")`, such as what `load` returns. Another array is left alone.

    Cost: a system call. What is used again is read again, as a rule from what the system keeps of the file.
    """
    owner: Any = array
    read_only = False  # elsewhere the memory may hold what somebody wrote, and nothing else does
    while isinstance(owner, np.ndarray):
        read_only = read_only or (isinstance(owner, np.memmap) and owner.mode == "r")
        owner = owner.base
    if read_only and hasattr(mmap.mmap, "madvise"):
        owner.madvise(mmap.MADV_DONTNEED)
