"""A text, encoded once into a mapped file of ids: it is never in memory as a whole.

Letters used for shapes in this file:
    W  words of the text          N  words and line ends in it

    text.ids       int32, shape (N,): the row of each word in `words`, and -1 after each line that has a word
    text.json      the words with their counts, the most frequent first, and what the text was
Both lie in the run folder while training goes on, so that a run that was stopped can resume; see training.py.
"""

from __future__ import annotations

import gzip
import json
import mmap
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from frostline.errors import DataFileError, RunFolderError
from frostline.files import replacing, standard_input
from frostline.word2vec.encode import BadText, Counts, Encoder, Ids, encoder

Text = str | os.PathLike[str] | Iterable[Sequence[str]]

IDS, ABOUT = "text.ids", "text.json"
_PIECE = 1 << 20  # bytes that are read at a time
_SENTENCES = 1000  # lists of words, likewise
_CHUNK = 1 << 20  # ids


@dataclass(frozen=True)
class Corpus:
    """An encoded text.

    Attributes:
        words: The W words that are frequent enough, the most frequent first.
        counts: How often each occurs, int64, shape (W,).
        ids: The text, int32, shape (N,), memory-mapped.
    """

    words: list[str]
    counts: Counts
    ids: Ids

    @property
    def size(self) -> int:
        """How many words the text has, without those that are too rare."""
        return int(self.counts.sum())

    def release(self) -> None:
        """Release the pages of the text that were read; they are read again when they are needed."""
        mapped: Any = self.ids.base
        if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def source_of(text: Text) -> dict[str, Any] | None:
    """Return what identifies a text file: path, size, time. None for standard input and for lists of words.

    Raises:
        DataFileError: There is no such file.
    """
    if not isinstance(text, str | os.PathLike) or str(text) == "-":
        return None
    try:
        found = Path(text).stat()
    except OSError as error:
        raise DataFileError(f"{text}: cannot be opened: {error.strerror}. Check the path.") from None
    return {"path": str(Path(text).resolve()), "size": found.st_size, "mtime_ns": found.st_mtime_ns}


def write_corpus(
    text: Text,
    folder: Path,
    min_count: int,
    among: Callable[[str], bool] | None = None,
    read: Callable[[int], None] | None = None,
) -> Corpus:
    """Encode a text into `folder`, which exists.

    Args:
        text: The path of UTF-8 text, plain or gzipped; "-" for standard input; or lists of words. Words are separated
            by whitespace, lines by line feeds.
        folder: Where text.ids and text.json are written, both or none.
        min_count: Words that are rarer are left out.
        among: Words for which it returns False are left out, too.
        read: Is told now and then how many bytes of the file were read.

    Raises:
        DataFileError: The text cannot be read (path, line, what to do), has no word that is frequent enough, changes
            while it is read, or does not fit on the disk.

    Cost: one pass over the text; 4 bytes on disk for each word; memory for the different words.
    """
    name = "standard input" if text == "-" else str(text) if isinstance(text, str | os.PathLike) else "text"
    before, encode = source_of(text), encoder()
    try:
        (folder / ABOUT).unlink(missing_ok=True)
        with replacing(folder / IDS) as unfinished:
            with unfinished.open("r+b") as file:
                for ids, done, total in _ids(text, name, encode):
                    file.write(ids.data)
                    _check_room(file, folder, done, total)
                    if read is not None:
                        read(done)
                if source_of(text) != before:
                    raise DataFileError(f"{name}: changed while it was read. Train again when its writer is done.")
                found, counts = encode.vocabulary()
                rows = _frequent(found, counts, min_count, among, name)
                _renumber(file, rows, len(found))
                os.fsync(file.fileno())
            words = [found[row] for row in rows.tolist()]
            about = {"text": before, "min_count": min_count, "words": words, "counts": counts[rows].tolist()}
            with replacing(folder / ABOUT) as described:
                described.write_text(json.dumps(about), encoding="utf-8")
    except OSError as error:
        raise DataFileError(
            f"{folder}: the encoded text cannot be written: {error.strerror}. Make room, or name another folder."
        ) from None
    return read_corpus(folder)


def read_corpus(folder: Path) -> Corpus:
    """Return the corpus that `write_corpus` has left in `folder`.

    Raises:
        RunFolderError: There is none, or it is damaged.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        with (folder / IDS).open("rb") as file:
            ids: Ids = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.int32)
        counts = np.array(about["counts"], dtype=np.int64)
        words = [str(word) for word in about["words"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{folder}: holds no encoded text ({error}). Train from the start.") from None
    if not len(counts) == len(words) > 0 or int(counts.sum()) > len(ids):
        raise RunFolderError(
            f"{folder / IDS}: damaged: it is not the text that {ABOUT} describes. Train from the start."
        )
    return Corpus(words, counts, ids)


def _ids(text: Text, name: str, encode: Encoder) -> Iterator[tuple[Ids, int, int | None]]:
    """Yield the ids of each piece, how many bytes of the file were read, and how many it has (None: unknown)."""
    pieces = _pieces(text, name) if isinstance(text, str | os.PathLike) else _joined(text)
    try:
        for piece, done, total, words in pieces:
            ids = encode.feed(piece)
            if words is not None and words != int((ids >= 0).sum()):
                raise DataFileError("text: a word is empty or has whitespace in it. Divide or leave out such words.")
            yield ids, done, total
        yield encode.feed(b"\n"), 0, None  # ends the last line
    except BadText as error:
        raise DataFileError(f"{name}:{error.line}: {error}.") from None


def _pieces(path: str | os.PathLike[str], name: str) -> Iterator[tuple[bytes, int, int | None, None]]:
    with _opened(path, name) as raw:
        packed = raw.peek(2)[:2] == b"\x1f\x8b"  # type: ignore[attr-defined]
        total = None if str(path) == "-" else os.fstat(raw.fileno()).st_size
        stream = cast("IO[bytes]", gzip.GzipFile(fileobj=raw) if packed else raw)
        first, done = True, 0
        try:
            while piece := stream.read(_PIECE):
                done = raw.tell() if total is not None else done + len(piece)
                yield piece.removeprefix(b"\xef\xbb\xbf") if first else piece, done, total, None
                first = False
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataFileError(f"{name}: the gzip file is cut off or damaged ({error}). Make it again.") from None
        except OSError as error:
            raise DataFileError(f"{name}: cannot be read: {error.strerror}. Check the file.") from None


@contextmanager
def _opened(path: str | os.PathLike[str], name: str) -> Iterator[IO[bytes]]:
    if str(path) == "-":
        yield standard_input()
        return
    try:
        with Path(path).open("rb") as file:
            yield file
    except OSError as error:
        raise DataFileError(f"{name}: cannot be opened: {error.strerror}. Check the path.") from None


def _joined(sentences: Iterable[Sequence[str]]) -> Iterator[tuple[bytes, int, None, int]]:
    """Yield lists of words as text, and how many words it has."""
    rest = iter(sentences)
    while some := list(islice(rest, _SENTENCES)):
        for sentence in some:
            if isinstance(sentence, str) or not all(isinstance(word, str) for word in sentence):
                raise TypeError(f"text: expected a path or lists of words, got {sentence!r}. Pass `text.split()`.")
        lines = (" ".join(sentence) for sentence in some)
        try:
            yield "".join(f"{line}\n" for line in lines).encode(), 0, None, sum(map(len, some))
        except UnicodeEncodeError as error:
            raise DataFileError(f"text: a word is not UTF-8: {error.object!r:.80}. Leave it out.") from None


def _check_room(file: IO[bytes], folder: Path, done: int, total: int | None) -> None:
    """Raise DataFileError if the rest of the text, encoded like what was read, would fill the disk."""
    if not total or not done:
        return
    to_come = int(file.tell() / done * (total - done))
    free = shutil.disk_usage(folder).free
    if to_come > free:
        raise DataFileError(
            f"{folder}: the encoded text needs {to_come / 1e9:.2f} GB more, and the disk has {free / 1e9:.2f} GB. "
            "Make room, or name a run folder on another disk."
        )


def _frequent(
    words: list[str], counts: Counts, min_count: int, among: Callable[[str], bool] | None, name: str
) -> Counts:
    """Return the ids of the words to train on, the most frequent first, else in the order of the text."""
    if not words:
        raise DataFileError(f"{name}: holds no words. Pass a text.")
    order = np.argsort(-counts, kind="stable")
    rows = order[counts[order] >= min_count]
    if not len(rows):
        most = int(counts.max())
        raise DataFileError(
            f"{name}: none of its {len(words):,} words occurs {min_count} times; the most frequent, "
            f"{words[int(order[0])]!r}, occurs {most} times. Pass a smaller min_count, or more text."
        )
    if among is not None:
        rows = np.array([row for row in rows.tolist() if among(words[row])], dtype=np.int64)
        if not len(rows):
            raise DataFileError(f"{name}: none of its words is in the file to start from. Check language and case.")
    return rows


def _renumber(file: IO[bytes], rows: Counts, words: int) -> None:
    """Replace each id in the file by its index in `rows`, and drop the words that are not there."""
    new = np.full(words + 1, -2, dtype=np.int32)
    new[rows] = np.arange(len(rows), dtype=np.int32)
    new[-1] = -1  # the id of a line end stays
    file.flush()
    read, written, ended = 0, 0, True
    while True:
        file.seek(read)
        chunk = np.frombuffer(file.read(4 * _CHUNK), dtype=np.int32)
        if not len(chunk):
            break
        read += chunk.nbytes
        found = new[chunk]
        found = found[found != -2]
        again = (found == -1) & (np.concatenate([[-1 if ended else 0], found[:-1]]) == -1)  # the line has no word left
        if len(found):
            ended = bool(found[-1] == -1)
        found = found[~again]
        file.seek(written)
        file.write(found.data)
        written += found.nbytes
    file.truncate(written)
