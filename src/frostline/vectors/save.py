"""Save word vectors: as a file that opens in milliseconds, or in the formats that other programs read.

The file is read back before it gets its name, and compared bit by bit: what a format cannot hold, such as a word with a
blank in word2vec's, is an error and not another word.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from frostline.errors import VectorFileError
from frostline.files import replacing
from frostline.vectors import binary, safetensors_file, text
from frostline.vectors.sources import Source, as_vectors
from frostline.vectors.table import Chunk, Vectors

_FORMATS = ".safetensors (opens in milliseconds), .txt (GloVe), .vec (word2vec text, fastText) or .bin (word2vec)"


def save(vectors: Source, path: str | os.PathLike[str]) -> None:
    """Write `vectors` to a file, in the format that its name says.

    Args:
        vectors: Vectors from `load`, or made in memory; a path, a dict or gensim's KeyedVectors.
        path: The file to write. `.safetensors` is mapped by `load` in milliseconds. For other programs: `.txt`, GloVe
            text, a line `word number ... number` for each word; `.vec`, word2vec text, which has a first line `V D`;
            `.bin`, word2vec's binary form. An existing file is replaced when the new one is complete; of a link, its
            target.

    Raises:
        VectorFileError: The name ends in something else, there are no words, a word cannot be written in the format, or
            the file cannot be written.

    Cost: one pass over the matrix; 4 V D + B + 24 V bytes on disk for .safetensors, of which B are the words. Other
        formats are read back once; text takes about 10 V D bytes, in which `load` finds the same float32 values.

    Example:
        >>> import tempfile
        >>> from frostline.vectors import load
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save({"ice": [1.0, 0.1]}, f"{folder}/ice.vec")
        ...     print(Path(f"{folder}/ice.vec").read_text(), load(f"{folder}/ice.vec", cache=False))
        1 2
        ice 1.0 0.1
         Vectors(1 words x 2)
    """
    target = Path(path)
    if target.suffix not in (".safetensors", *_WRITERS):
        raise VectorFileError(f"path: {target} ends in none of {_FORMATS}. Rename it.")
    vectors = as_vectors(vectors)
    if not len(vectors) or not vectors.dimension:
        raise VectorFileError(f"vectors: {vectors!r} are empty. Save at least one word of at least one dimension.")
    target = target.resolve()  # a link stays one
    try:
        if target.suffix == ".safetensors":
            return safetensors_file.write(safetensors_file.chunks(vectors), target)
        with replacing(target) as unfinished, unfinished.open("r+b") as file:
            _WRITERS[target.suffix](vectors, file)
            file.seek(0)
            _check_same(vectors, file, target)
    except _LostError as error:
        unusual = [word for word in vectors.words if not word or any(blank in word for blank in " \t\n\r\ufeff")]
        example = f"{unusual[0]!r} is a word: " if unusual else ""
        raise VectorFileError(
            f"{target}: would not be read back as it is: {example}{error}. Save as .safetensors, or change such words."
        ) from None
    except OSError as error:
        raise VectorFileError(f"{target}: cannot be written: {error.strerror}. Choose another folder.") from None


def _write_glove(vectors: Vectors, file: IO[bytes]) -> None:
    for chunk in safetensors_file.chunks(vectors):
        file.write(_lines(chunk))


def _write_word2vec_text(vectors: Vectors, file: IO[bytes]) -> None:
    if b" " in (blob := vectors.words.blob.tobytes()) or b"\t" in blob:  # which GloVe allows
        raise _LostError("word2vec text separates at every blank")
    file.write(b"%d %d\n" % (len(vectors), vectors.dimension))
    _write_glove(vectors, file)


def _write_word2vec_binary(vectors: Vectors, file: IO[bytes]) -> None:
    file.write(b"%d %d\n" % (len(vectors), vectors.dimension))
    for chunk in safetensors_file.chunks(vectors):
        rows = (row.tobytes() for row in chunk.matrix)
        file.write(b"".join(b"%s %s\n" % (word, row) for word, row in zip(_words(chunk), rows, strict=True)))


_WRITERS: dict[str, Callable[[Vectors, IO[bytes]], None]] = {
    ".txt": _write_glove,
    ".vec": _write_word2vec_text,
    ".bin": _write_word2vec_binary,
}


def _words(chunk: Chunk) -> Iterator[bytes]:
    end = 0
    for length in chunk.lengths.tolist():
        yield chunk.words[end : end + length]
        end += length


def _lines(chunk: Chunk) -> bytes:
    """Return the words and their vectors as lines, each number with as few digits as name it among float32."""
    try:
        import polars
    except ImportError:
        rows = [b" ".join(row) for row in chunk.matrix.astype("S").tolist()]
    else:
        frame = polars.from_numpy(chunk.matrix, orient="row")
        rows = frame.write_csv(separator=" ", include_header=False).encode().split(b"\n")[:-1]
    return b"".join(b"%s %s\n" % pair for pair in zip(_words(chunk), rows, strict=True))


class _LostError(Exception):
    """A file does not hold what was written."""


def _check_same(vectors: Vectors, file: BinaryIO, target: Path) -> None:
    """Raise _LostError unless the file holds these words and bits."""
    read = binary.read if target.suffix == ".bin" else text.read
    row = 0
    try:
        for chunk in read(file, target.name):
            stop = row + len(chunk.lengths)
            bounds = vectors.words.offsets[row : stop + 1]
            words = vectors.words.blob[bounds[0] : bounds[-1]].tobytes()
            if chunk.words != words or not np.array_equal(chunk.lengths, np.diff(bounds)):
                raise _LostError(f"the words of rows {row} to {stop - 1} would be others")
            if not np.array_equal(chunk.matrix, vectors.matrix[row:stop]):
                raise _LostError(f"the numbers of rows {row} to {stop - 1} would be others")
            row = stop
    except VectorFileError as error:
        raise _LostError(str(error)) from None
    if row != len(vectors):
        raise _LostError(f"{row:,} words would be left of {len(vectors):,}")
