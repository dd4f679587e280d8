"""frostline's own file of word vectors: safetensors, opened by memory mapping. The cache is made of the same files.

Letters used for shapes in this file:
    V  words          D  numbers of a word          B  bytes of all words together

The tensors of the file:
    matrix   F32 (V, D)      one row for each word
    words    U8  (B,)        the UTF-8 of all words, back to back
    offsets  I64 (V + 1,)    where each word starts in `words`, and where the last ends
    hashes   U64 (V,)        the words' hashes, ascending (the hash is defined in words.py)
    order    I64 (V,)        the row of each hash
    filler   U8  (0 to 7,)   puts what follows `matrix` on a multiple of 8
and its metadata: {"format": "frostline.vectors", "version": "1"}. Any safetensors library can read it.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from frostline.errors import VectorFileError
from frostline.vectors.table import Chunk, Floats, Gathered, Vectors
from frostline.vectors.words import Ints, Words

FORM = {"format": "frostline.vectors", "version": "1"}
_HEAD = 4096  # bytes kept for the header, so that the matrix starts on a page and may be written before V is known
_TYPES = {"matrix": "F32", "filler": "U8", "offsets": "I64", "hashes": "U64", "order": "I64", "words": "U8"}
_NUMPY = {"F32": "<f4", "U8": "u1", "I64": "<i8", "U64": "<u8"}
_ROWS = 16_384  # rows copied at a time


def save(vectors: Vectors, path: str | os.PathLike[str]) -> None:
    """Write `vectors` to a .safetensors file that `load` opens in milliseconds.

    Args:
        vectors: What `load` or `Vectors` gave.
        path: The file to write, named .safetensors; one that is there is replaced once the new one is complete.

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
        raise VectorFileError(f"path: {target} does not end in .safetensors, the one form that is written. Rename it.")
    if not len(vectors) or not vectors.dimension:
        raise VectorFileError(f"vectors: {vectors!r} hold nothing to write. Save at least one word with one number.")
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
    """Write all chunks of a file to `target`, under a temporary name until it is whole and on the disk."""
    part = target.with_name(f".{target.name[:120]}.{secrets.token_hex(8)}.part")
    try:
        with part.open("x+b") as file:
            _write(file, chunks)
            file.flush()
            os.fsync(file.fileno())
        if modified_ns is not None:
            os.utime(part, ns=(modified_ns, modified_ns))
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _write(file: IO[bytes], chunks: Iterable[Chunk]) -> None:
    gathered = Gathered()
    width = 0
    file.write(bytes(_HEAD))
    for chunk in chunks:
        gathered.add(chunk)
        width = chunk.matrix.shape[1]
        file.write(chunk.matrix.astype("<f4", copy=False).data)
    words, kept = gathered.finish()
    if kept is not None:
        _keep_rows(file, kept, width)
    size = 4 * width * len(words)
    parts: dict[str, NDArray[Any]] = {
        "filler": np.zeros(-size % 8, dtype="u1"),
        "offsets": words.offsets,
        "hashes": words.hashes,
        "order": words.order,
        "words": words.blob,
    }
    entries: dict[str, Any] = {"__metadata__": FORM}
    entries["matrix"] = {"dtype": "F32", "shape": [len(words), width], "data_offsets": [0, size]}
    for name, array in parts.items():
        raw = np.ascontiguousarray(array, dtype=_NUMPY[_TYPES[name]])
        file.write(raw.data)
        entries[name] = {"dtype": _TYPES[name], "shape": [len(raw)], "data_offsets": [size, size + raw.nbytes]}
        size += raw.nbytes
    file.seek(0)
    file.write((_HEAD - 8).to_bytes(8, "little") + json.dumps(entries).encode().ljust(_HEAD - 8))


def _keep_rows(file: IO[bytes], kept: Ints, width: int) -> None:
    """Move the rows that stay to the front of the matrix, and end the file there."""
    file.flush()
    matrix = np.memmap(file, dtype="<f4", mode="r+", offset=_HEAD, shape=(int(kept[-1]) + 1, width))
    for first in range(0, len(kept), _ROWS):
        rows = kept[first : first + _ROWS]
        matrix[first : first + len(rows)] = matrix[rows]  # the right side is a copy, and never behind the left
    matrix.flush()
    del matrix
    file.truncate(_HEAD + 4 * width * len(kept))
    file.seek(0, os.SEEK_END)


def open_file(path: str | os.PathLike[str], trusted: bool = False) -> Vectors:
    """Map a file written by `save`.

    Args:
        path: The file.
        trusted: Take the offsets and the order as they are (a cache file that nobody has touched).

    Raises:
        VectorFileError: It is not such a file, or it is damaged; OSError: it cannot be opened.

    Cost: the header; and, unless trusted, one pass over the V offsets and the order. The matrix is not read.
    """
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        entries = _header(file, size, path)
        whole = np.memmap(file, dtype=np.uint8, mode="r")
    start = int.from_bytes(whole[:8].tobytes(), "little") + 8
    arrays: dict[str, NDArray[Any]] = {}
    for name, entry in entries.items():
        first, last = entry["data_offsets"]
        raw = np.asarray(whole[start + first : start + last])
        arrays[name] = raw.view(_NUMPY[_TYPES[name]]).reshape(entry["shape"])
    words = Words(arrays["words"], arrays["offsets"], arrays["hashes"], arrays["order"])
    matrix: Floats = arrays["matrix"]
    if not trusted and not _sound(words):
        raise VectorFileError(f"{path}: damaged: its index of words is not one. Write it again with `save`.")
    return Vectors.opened(words, matrix)


def _header(file: IO[bytes], size: int, path: str | os.PathLike[str]) -> dict[str, Any]:
    """The entries of the header, each of which fits the file and the others."""
    length = int.from_bytes(file.read(8), "little")
    try:
        entries = json.loads(file.read(length)) if 0 < length <= size - 8 else {}
        metadata = entries.pop("__metadata__", None)
    except (ValueError, AttributeError, RecursionError):
        entries, metadata = {}, None
    if metadata != FORM or set(entries) != set(_TYPES):
        raise VectorFileError(
            f"{path}: no word vectors: not a file that frostline wrote. "
            "Pass `frostline.vectors.save`'s file, or GloVe or word2vec text, fastText .vec or word2vec .bin."
        )
    try:
        count, width = entries["matrix"]["shape"]
        wanted = {name: [count] for name in ("hashes", "order")} | {"offsets": [count + 1], "matrix": [count, width]}
        end = 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            first, last = entry["data_offsets"]
            items = int(np.prod(entry["shape"], dtype=object))
            whole = last - first == items * np.dtype(_NUMPY[_TYPES[name]]).itemsize
            if first != end or not whole or entry["dtype"] != _TYPES[name]:
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


def _sound(words: Words) -> bool:
    count, offsets, order = len(words), words.offsets, words.order
    return bool(
        offsets[0] == 0
        and offsets[-1] == len(words.blob)
        and (np.diff(offsets) >= 0).all()
        and (order >= 0).all()
        and (order < count).all()
    )
