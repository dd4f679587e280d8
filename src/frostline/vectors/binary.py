"""word2vec's binary form: a line `V D`, then for each word its UTF-8, one SPACE and D little-endian float32.

Letters used for shapes in this file:
    V  words          D  dimensions of a vector

word2vec.c writes a line feed after each vector, gensim does not; both are read. The header is not trusted: memory is
allocated for what the file contains, never for what its first line promises.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from frostline.errors import VectorFileError
from frostline.vectors.table import Chunk

_BLOCK = 1 << 24
_LONGEST = 1 << 16  # bytes of a word; more means that the file is something else


def read(stream: BinaryIO, path: str) -> Iterator[Chunk]:
    """Yield the words and vectors of a word2vec .bin, in order.

    Raises:
        VectorFileError: The file is too short or too long, a word is not UTF-8, or a number is not finite.

    Cost: one block of 16 MiB in memory; about half a microsecond of Python per word.
    """
    promised, dimension = (int(field) for field in stream.readline(64).split())
    if not promised or not dimension:
        raise VectorFileError(
            f"{path}:1: no word vectors: the header says {promised:,} words of {dimension:,} numbers. "
            "The header is wrong or the file is not a word2vec .bin; download it again."
        )
    width = 4 * dimension  # bytes of a vector
    done, rest = 0, b""
    while done < promised:
        data = stream.read(_BLOCK)
        buffer = rest + data
        words, rows, end = _records(buffer, width, promised - done)
        if words:
            yield _chunk(words, rows, dimension, path, done)
        done += len(words)
        rest = buffer[end:]
        if not data or (not words and len(rest) > width + _LONGEST):
            break
    if done < promised:
        raise VectorFileError(
            f"{path}: the header says {promised:,} words of {dimension:,} numbers, the file ends in word {done + 1:,}. "
            "It is cut off or not a word2vec .bin; download it again."
        )
    if (rest + stream.read(2)).strip(b"\n"):
        raise VectorFileError(
            f"{path}: the file continues after the {promised:,} words of {dimension:,} numbers of its header. "
            "The header is wrong or the file is not a word2vec .bin; download it again."
        )


def _records(buffer: bytes, width: int, most: int) -> tuple[list[bytes], list[bytes], int]:
    """Return the complete records at the start of `buffer`, as words and vectors, and where the rest starts."""
    words: list[bytes] = []
    rows: list[bytes] = []
    end = 0
    while len(words) < most:
        space = buffer.find(b" ", end)
        if space < 0 or space + 1 + width > len(buffer):
            break
        words.append(buffer[end:space].lstrip(b"\n"))
        end = space + 1 + width
        rows.append(buffer[space + 1 : end])
    return words, rows, end


def _chunk(words: list[bytes], rows: list[bytes], dimension: int, path: str, done: int) -> Chunk:
    matrix = np.frombuffer(b"".join(rows), dtype="<f4").reshape(len(words), dimension).astype(np.float32, copy=False)
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        name = words[row].decode(errors="replace")
        raise VectorFileError(
            f"{path}: word {done + row + 1:,}, {name!r}, has a number that is not finite. "
            "The file is damaged or not a word2vec .bin; download it again."
        )
    for row, word in enumerate(words):
        if not word:
            raise VectorFileError(f"{path}: word {done + row + 1:,} is empty. Write the file again without it.")
        try:
            word.decode()
        except UnicodeDecodeError:
            raise VectorFileError(
                f"{path}: word {done + row + 1:,}, {word!r}, is not UTF-8. Write the file again with gensim: "
                'KeyedVectors.load_word2vec_format(OLD, binary=True, unicode_errors="ignore")'
                ".save_word2vec_format(NEW, binary=True)."
            ) from None
    return Chunk(b"".join(words), np.array([len(word) for word in words], dtype=np.int64), matrix, 0)
