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
and its metadata: {"format": "frostline.vectors", "version": "1"}. Any safetensors library can read it. A cache file
also has `source`, what it was read from, and `duplicates`, what the source listed again: JSON both.

The header is read and written here, not by `safetensors`, for three reasons. `safe_open(framework="np")` copies every
tensor into memory (1 s for a million words of 300 dimensions; mapping takes 1 ms). `safe_open(framework="pt")` does
map, but as a private writable mapping that looks like ordinary memory, so `release_pages` could not release it. And
`serialize_file` needs the whole matrix at once, while `write` streams a file whose count of words is not known yet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from frostline.errors import VectorFileError
from frostline.files import replacing
from frostline.vectors.table import Chunk, Duplicates, Floats, Vectors, WordCollector
from frostline.vectors.words import Ints, Words

_METADATA = {"format": "frostline.vectors", "version": "1"}
_PAGE = 4096  # the matrix starts on one; the header before it is reserved, as V is not known yet
_LONGEST_HEADER = 1 << 20  # bytes; more is no header of ours
_TYPES = {"matrix": "F32", "filler": "U8", "offsets": "I64", "hashes": "U64", "order": "I64", "words": "U8"}
_NUMPY = {"F32": "<f4", "U8": "u1", "I64": "<i8", "U64": "<u8"}
_ROWS = 16_384  # rows copied at a time


def chunks(vectors: Vectors) -> Iterator[Chunk]:
    """Yield the words and vectors in order, some thousand at a time."""
    words, lengths = vectors.words, np.diff(vectors.words.offsets)
    for first in range(0, len(vectors), _ROWS):
        last = min(first + _ROWS, len(vectors))
        blob = words.blob[words.offsets[first] : words.offsets[last]].tobytes()
        yield Chunk(blob, lengths[first:last], np.ascontiguousarray(vectors.matrix[first:last], dtype="<f4"), 0)


def write(
    chunks: Iterable[Chunk],
    target: Path,
    source: object = None,
    modified_ns: int | None = None,
    mode: int | None = None,
) -> None:
    """Write all chunks to `target`, atomically.

    Args:
        chunks: At least one.
        target: The file.
        source: What the chunks were read from, for `map_file` to return: plain values for JSON.
        modified_ns: The modification time that it gets; None: now.
        mode: Its permissions, as for `replacing`.
    """
    with replacing(target, mode) as unfinished:
        with unfinished.open("r+b") as file:
            _write(file, chunks, source)
        if modified_ns is not None:
            os.utime(unfinished, ns=(modified_ns, modified_ns))


def _write(file: IO[bytes], chunks: Iterable[Chunk], source: object) -> None:
    collector = WordCollector()
    width = 0
    metadata = dict(_METADATA) if source is None else {**_METADATA, "source": json.dumps(source)}
    reserved = _PAGE * (2 + len(json.dumps(metadata)) // _PAGE)
    file.write(bytes(reserved))
    for chunk in chunks:
        collector.add(chunk)
        width = chunk.matrix.shape[1]
        file.write(chunk.matrix.astype("<f4", copy=False).data)
    words, repeats = collector.finish()
    if repeats is not None:
        file.flush()
        matrix = np.memmap(file, dtype="<f4", mode="r+", offset=reserved, shape=(repeats.words, width))
        metadata["duplicates"] = json.dumps(repeats.describe(words, matrix))
        _keep_rows(matrix, repeats.kept)
        del matrix
        file.truncate(reserved + 4 * width * len(words))
        file.seek(0, os.SEEK_END)
    size = 4 * width * len(words)  # also the offset of the next tensor, as in `data_offsets`
    parts: dict[str, NDArray[Any]] = {
        "filler": np.zeros(-size % 8, dtype="u1"),
        "offsets": words.offsets,
        "hashes": words.hashes,
        "order": words.order,
        "words": words.blob,
    }
    entries: dict[str, Any] = {"__metadata__": metadata}
    entries["matrix"] = {"dtype": "F32", "shape": [len(words), width], "data_offsets": [0, size]}
    for name, array in parts.items():
        raw = np.ascontiguousarray(array, dtype=_NUMPY[_TYPES[name]])
        file.write(raw.data)
        entries[name] = {"dtype": _TYPES[name], "shape": [len(raw)], "data_offsets": [size, size + raw.nbytes]}
        size += raw.nbytes
    file.seek(0)
    length = reserved - 8
    file.write(length.to_bytes(8, "little") + json.dumps(entries).encode().ljust(length))


def _keep_rows(matrix: Floats, rows: Ints) -> None:
    """Move the given rows of the matrix (ascending) to its front."""
    for first in range(0, len(rows), _ROWS):
        block = rows[first : first + _ROWS]
        # In place: the right side is a copy, and as rows only move forward, it has not been overwritten yet.
        matrix[first : first + len(block)] = matrix[block]


def open_file(path: str | os.PathLike[str]) -> Vectors:
    """Return the vectors of a file written by `save`, memory-mapped.

    Args:
        path: The file.

    Raises:
        VectorFileError: The file is damaged, or was not written by `save`.
        OSError: It cannot be opened.

    Cost: the header, and one pass over the V offsets and the order. The matrix is not read.
    """
    with Path(path).open("rb") as file:  # opened once, so that header and mapping are of the same file
        return map_file(file, path)[0]


def map_file(file: BufferedReader, path: str | os.PathLike[str], trusted: bool = False) -> tuple[Vectors, object]:
    """Return the vectors of an open file, memory-mapped, and the `source` that `write` was given.

    Args:
        file: The file, at its start.
        path: Its name, for messages.
        trusted: Do not check offsets and order (a cache file with an unbroken seal).

    Raises:
        VectorFileError: The file is damaged, or was not written by `write`.
    """
    entries, metadata = _read_header(file, os.fstat(file.fileno()).st_size, path)
    mapped = np.memmap(file, dtype=np.uint8, mode="r")
    start = int.from_bytes(mapped[:8].tobytes(), "little") + 8
    arrays: dict[str, NDArray[Any]] = {}
    for name, entry in entries.items():
        first, last = entry["data_offsets"]
        raw = np.asarray(mapped[start + first : start + last])
        arrays[name] = raw.view(_NUMPY[_TYPES[name]]).reshape(entry["shape"])
    words = Words(arrays["words"], arrays["offsets"], arrays["hashes"], arrays["order"])
    if not trusted:
        _check_index(words, path)
    try:
        count, conflicting, first_words = json.loads(metadata.get("duplicates", "[0, 0, []]"))
        duplicates = Duplicates(int(count), int(conflicting), tuple(map(str, first_words)))
        source = json.loads(metadata.get("source", "null"))
    except (ValueError, TypeError, RecursionError):
        raise VectorFileError(f"{path}: damaged: its metadata is invalid. Write or download it again.") from None
    return Vectors.unchecked(words, arrays["matrix"], duplicates), source


def read_source(path: Path) -> object:
    """Return the `source` that `write` was given; None if the file is not one of ours."""
    try:
        with path.open("rb") as file:
            _, metadata = _read_header(file, path.stat().st_size, path)
        return json.loads(metadata.get("source", "null"))
    except (VectorFileError, ValueError, TypeError, RecursionError):
        return None


def _read_header(
    file: IO[bytes], size: int, path: str | os.PathLike[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return the entries of the header, checked against each other and the size of the file, and its metadata."""
    length = int.from_bytes(file.read(8), "little")
    try:
        entries = json.loads(file.read(length)) if 0 < length <= min(size - 8, _LONGEST_HEADER) else {}
        metadata = entries.pop("__metadata__", None)
        ours = {name: metadata.get(name) for name in _METADATA} == _METADATA
    except (ValueError, AttributeError, RecursionError):
        entries, metadata, ours = {}, {}, False
    if not ours or set(entries) != set(_TYPES):
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
    except (ValueError, TypeError, KeyError, OverflowError):
        raise VectorFileError(
            f"{path}: damaged: its header does not fit its {size:,} bytes. Write or download it again."
        ) from None
    return dict(entries), dict(metadata)


def _check_index(words: Words, path: str | os.PathLike[str]) -> None:
    """Raise VectorFileError unless every offset and every row of the index is within the file, and words are UTF-8."""
    offsets, order = words.offsets, words.order
    if not (
        offsets[0] == 0
        and offsets[-1] == len(words.blob)
        and (np.diff(offsets) >= 0).all()
        and (order >= 0).all()
        and (order < len(words)).all()
        and (words.hashes[1:] >= words.hashes[:-1]).all()
        and _are_utf8(words)
    ):
        raise VectorFileError(f"{path}: damaged: its index of words is invalid. Write it again with `save`.")


def _are_utf8(words: Words) -> bool:
    """Return whether every word is UTF-8: all together are, and none begins inside a character."""
    try:
        words.blob.tobytes().decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    starts = words.offsets[words.offsets < len(words.blob)]
    return bool(((words.blob[starts] & 0xC0) != 0x80).all())
