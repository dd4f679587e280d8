"""frostline's own file of word vectors: safetensors, opened by memory mapping. Cache files have the same format.

Letters used for shapes in this file:
    V  words          D  dimensions of a vector          B  bytes of all words together

The tensors of the file:
    matrix   F32 (V, D)      one row for each word
    words    U8  (B,)        the UTF-8 of all words, back to back
    offsets  I64 (V + 1,)    where each word starts in `words`, and where the last ends
    hashes   U64 (V,)        the words' hashes, ascending (the hash is defined in words.py)
    order    I64 (V,)        the row of each hash
    filler   U8  (0 to 7,)   aligns what follows `matrix` to 8 bytes
and its metadata: {"format": "frostline.vectors", "version": "1"}. Any safetensors library can read it.

The header is read and written here, not by `safetensors`, for three reasons. `safe_open(framework="np")` copies every
tensor into memory (1 s for a million words of 300 dimensions; mapping takes 1 ms). `safe_open(framework="pt")` does
map, but as a private writable mapping that looks like ordinary memory, so `release_pages` could not release it. And
`serialize_file` needs the whole matrix at once, while `write` streams a file whose count of words is not known yet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from frostline.errors import VectorFileError
from frostline.files import replacing
from frostline.vectors.table import Chunk, Floats, Vectors, WordCollector
from frostline.vectors.words import Ints, Words

METADATA = {"format": "frostline.vectors", "version": "1"}
_HEADER_BYTES = 4096  # reserved: the matrix starts on a page, and can be written before V is known
_TYPES = {"matrix": "F32", "filler": "U8", "offsets": "I64", "hashes": "U64", "order": "I64", "words": "U8"}
_NUMPY = {"F32": "<f4", "U8": "u1", "I64": "<i8", "U64": "<u8"}
_ROWS = 16_384  # rows copied at a time


def save(vectors: Vectors, path: str | os.PathLike[str]) -> None:
    """Write `vectors` to a .safetensors file that `load` opens in milliseconds.

    Args:
        vectors: Vectors from `load`, or made in memory.
        path: The file to write, ending in .safetensors. An existing file is replaced when the new one is complete.

    Raises:
        VectorFileError: The name does not end in .safetensors, there are no words, or the file cannot be written.

    Cost: one pass over the matrix; 4 V D + B + 24 V bytes on disk.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(Vectors(["ice"], [[1.0, 2.0]]), f"{folder}/ice.safetensors")
        ...     open_file(f"{folder}/ice.safetensors")
        Vectors(1 words x 2)
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise VectorFileError(f"path: {target} does not end in .safetensors, the only format written. Rename it.")
    if not len(vectors) or not vectors.dimension:
        raise VectorFileError(f"vectors: {vectors!r} are empty. Save at least one word of at least one dimension.")
    try:
        write(_chunks(vectors), target)
    except OSError as error:
        raise VectorFileError(f"{target}: cannot be written: {error.strerror}. Choose another folder.") from None


def _chunks(vectors: Vectors) -> Iterator[Chunk]:
    words, lengths = vectors.words, np.diff(vectors.words.offsets)
    for first in range(0, len(vectors), _ROWS):
        last = min(first + _ROWS, len(vectors))
        blob = words.blob[words.offsets[first] : words.offsets[last]].tobytes()
        yield Chunk(blob, lengths[first:last], np.ascontiguousarray(vectors.matrix[first:last], dtype="<f4"), 0)


def write(chunks: Iterable[Chunk], target: Path, modified_ns: int | None = None) -> None:
    """Write all chunks to `target`, atomically and flushed to disk, and set its modification time to `modified_ns`."""
    with replacing(target) as unfinished:
        with unfinished.open("r+b") as file:
            _write(file, chunks)
            file.flush()
            os.fsync(file.fileno())
        if modified_ns is not None:
            os.utime(unfinished, ns=(modified_ns, modified_ns))


def _write(file: IO[bytes], chunks: Iterable[Chunk]) -> None:
    collector = WordCollector()
    width = 0
    file.write(bytes(_HEADER_BYTES))
    for chunk in chunks:
        collector.add(chunk)
        width = chunk.matrix.shape[1]
        file.write(chunk.matrix.astype("<f4", copy=False).data)
    words, rows = collector.finish()
    if rows is not None:
        _keep_rows(file, rows, width)
    size = 4 * width * len(words)  # also the offset of the next tensor, as in `data_offsets`
    parts: dict[str, NDArray[Any]] = {
        "filler": np.zeros(-size % 8, dtype="u1"),
        "offsets": words.offsets,
        "hashes": words.hashes,
        "order": words.order,
        "words": words.blob,
    }
    entries: dict[str, Any] = {"__metadata__": METADATA}
    entries["matrix"] = {"dtype": "F32", "shape": [len(words), width], "data_offsets": [0, size]}
    for name, array in parts.items():
        raw = np.ascontiguousarray(array, dtype=_NUMPY[_TYPES[name]])
        file.write(raw.data)
        entries[name] = {"dtype": _TYPES[name], "shape": [len(raw)], "data_offsets": [size, size + raw.nbytes]}
        size += raw.nbytes
    file.seek(0)
    length = _HEADER_BYTES - 8
    file.write(length.to_bytes(8, "little") + json.dumps(entries).encode().ljust(length))


def _keep_rows(file: IO[bytes], rows: Ints, width: int) -> None:
    """Keep only the given rows of the matrix (ascending), moved to its front, and truncate the file after them."""
    file.flush()
    matrix = np.memmap(file, dtype="<f4", mode="r+", offset=_HEADER_BYTES, shape=(int(rows[-1]) + 1, width))
    for first in range(0, len(rows), _ROWS):
        block = rows[first : first + _ROWS]
        # In place: the right side is a copy, and as rows only move forward, it has not been overwritten yet.
        matrix[first : first + len(block)] = matrix[block]
    matrix.flush()
    del matrix
    file.truncate(_HEADER_BYTES + 4 * width * len(rows))
    file.seek(0, os.SEEK_END)


def open_file(path: str | os.PathLike[str], trusted: bool = False) -> Vectors:
    """Return the vectors of a file written by `save`, memory-mapped.

    Args:
        path: The file.
        trusted: Do not check offsets and order (a cache file with an unbroken seal).

    Raises:
        VectorFileError: The file is damaged, or was not written by `save`.
        OSError: It cannot be opened.

    Cost: the header; unless trusted, one pass over the V offsets and the order. The matrix is not read.
    """
    with Path(path).open("rb") as file:  # opened once, so that header and mapping are of the same file
        size = os.fstat(file.fileno()).st_size
        entries = _read_header(file, size, path)
        mapped = np.memmap(file, dtype=np.uint8, mode="r")
    start = int.from_bytes(mapped[:8].tobytes(), "little") + 8
    arrays: dict[str, NDArray[Any]] = {}
    for name, entry in entries.items():
        first, last = entry["data_offsets"]
        raw = np.asarray(mapped[start + first : start + last])
        arrays[name] = raw.view(_NUMPY[_TYPES[name]]).reshape(entry["shape"])
    words = Words(arrays["words"], arrays["offsets"], arrays["hashes"], arrays["order"])
    matrix: Floats = arrays["matrix"]
    if not trusted:
        _check_index(words, path)
    return Vectors.unchecked(words, matrix)


def _read_header(file: IO[bytes], size: int, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the entries of the header, checked against each other and the size of the file."""
    length = int.from_bytes(file.read(8), "little")
    try:
        entries = json.loads(file.read(length)) if 0 < length <= size - 8 else {}
        metadata = entries.pop("__metadata__", None)
    except (ValueError, AttributeError, RecursionError):
        entries, metadata = {}, None
    if metadata != METADATA or set(entries) != set(_TYPES):
        raise VectorFileError(
            f"{path}: no word vectors: not a file that frostline wrote. "
            "Pass a file from `frostline.vectors.save`, or GloVe or word2vec text, fastText .vec or word2vec .bin."
        )
    try:
        count, width = entries["matrix"]["shape"]
        wanted = {name: [count] for name in ("hashes", "order")} | {"offsets": [count + 1], "matrix": [count, width]}
        end = 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            first, last = entry["data_offsets"]
            items = int(np.prod(entry["shape"], dtype=object))
            complete = last - first == items * np.dtype(_NUMPY[_TYPES[name]]).itemsize
            if first != end or not complete or entry["dtype"] != _TYPES[name]:
                raise ValueError
            if entry["shape"] != wanted.get(name, [items]) or not all(type(axis) is int for axis in entry["shape"]):
                raise ValueError
            end = last
        if end + length + 8 != size or min(count, width) < 1:
            raise ValueError
    except (ValueError, TypeError, KeyError):
        raise VectorFileError(
            f"{path}: damaged: its header does not fit its {size:,} bytes. Write or download it again."
        ) from None
    return dict(entries)


def _check_index(words: Words, path: str | os.PathLike[str]) -> None:
    """Raise VectorFileError unless every offset and every row of the index is within the file."""
    offsets, order = words.offsets, words.order
    if not (
        offsets[0] == 0
        and offsets[-1] == len(words.blob)
        and (np.diff(offsets) >= 0).all()
        and (order >= 0).all()
        and (order < len(words)).all()
    ):
        raise VectorFileError(f"{path}: damaged: its index of words is invalid. Write it again with `save`.")
