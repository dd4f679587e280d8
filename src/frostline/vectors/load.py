"""Opening a file of word vectors, whatever its form: what it is, who reads it, what is kept of it."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from frostline.errors import VectorFileError
from frostline.vectors import binary, text
from frostline.vectors import safetensors_file as tensors
from frostline.vectors.load_cache import Entry
from frostline.vectors.parse_lines import fields_of
from frostline.vectors.table import Chunk, Vectors, in_memory

Reader = Callable[[BinaryIO, str], Iterator[Chunk]]

_LOOK = 4096  # bytes that decide what a file is
_FASTTEXT = (793_712_314).to_bytes(4, "little")
_CONTROL = bytes(set(range(32)) - set(b"\t\n\r"))
_REFUSED = [
    (_FASTTEXT, "is a fastText .bin model. Pass the .vec file that comes with it, which holds the same words"),
    (b"PK\x03\x04", "is a zip archive. Unpack it (`unzip FILE`) and pass the file inside"),
    (b"BZh", "is packed with bzip2. Unpack it first: `bunzip2 FILE`"),
    (b"\xfd7zXZ", "is packed with xz. Unpack it first: `unxz FILE`"),
    (b"\x80", "is a pickle, which is never loaded. In gensim: `vectors.save_word2vec_format(NEW, binary=True)`"),
    (b"\x93NUMPY", "is a numpy array without words. Use `Vectors(words, numpy.load(FILE))`"),
]


def load(path: str | os.PathLike[str], *, cache: bool = True) -> Vectors:
    """Read a file of word vectors; read once, it is memory-mapped from then on.

    Args:
        path: GloVe text, word2vec text, fastText .vec, word2vec .bin, each also packed with gzip, or .safetensors
            written by `save`. What a file is, is seen from its content; of a file with a header, the name .bin helps.
        cache: Keep what was read in the user's cache folder ($FROSTLINE_CACHE, or the system's), and open that next
            time, as long as path, size and modification time are the same. .safetensors needs no cache.

    Returns:
        Vectors: of a word that stands in the file twice, the first. Numbers are float32(float64(text)).

    Raises:
        VectorFileError: The file cannot be read as word vectors: path, line, what is wrong, and what to do.
            Text must be UTF-8 with finite numbers; an empty word, a missing or surplus number, a header that
            promises another count, a file that is cut off, and a pipe are refused.

    Only SPACE and TAB separate, and lines end with LF or CRLF; a no-break space or U+2028 belongs to a word. A word may
    hold blanks: the last D fields are its numbers. Where the part before them is a number with a point or an
    exponent, the line is refused, since one number too many is likelier. Empty lines are skipped. A text file's last
    line may lack its end; a number cut short there cannot be told from a whole one.

    Cost: reading is one pass with bounded memory; opening again takes milliseconds, whatever the size. Text is read
    several times faster where polars is installed (`pip install 'frostline[vectors]'`), with the same result.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "tiny.txt"
        ...     _ = path.write_text("ice 1.0 0.0\\nsnow 0.5 0.25\\n")
        ...     vectors = load(path, cache=False)
        >>> vectors, list(vectors.words), vectors["snow"].tolist()
        (Vectors(2 words x 2), ['ice', 'snow'], [0.5, 0.25])
    """
    source = Path(path)
    if source.is_fifo():
        raise VectorFileError(f"{source}: a pipe, which can be read only once. Write it to a file, and pass that.")
    try:
        if _is_tensors(source):
            return tensors.open_file(source)
        entry = Entry(source)
    except OSError as error:
        raise VectorFileError(f"{source}: cannot be opened: {error.strerror}. Check the path.") from None
    if cache and (kept := entry.open() or entry.keep(lambda: _read(source, entry))):
        return kept
    return in_memory(_read(source, entry))


def _is_tensors(source: Path) -> bool:
    with source.open("rb") as file:
        head = file.read(9)
    return source.suffix == ".safetensors" or (head[8:] == b"{" and head[4:8] == b"\0\0\0\0")


def _read(source: Path, entry: Entry) -> Iterator[Chunk]:
    """Every word of the file; VectorFileError for whatever is wrong with it, never OSError."""
    entry.settle()
    try:
        with source.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw) if packed else raw)
            with stream:
                head = stream.read(_LOOK)
                stream.seek(0)
                yield from _reader(head, source)(stream, str(source))
        if not entry.unchanged():
            raise VectorFileError(f"{source}: changed while it was read. Load it again when its writer is done.")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise VectorFileError(f"{source}: the gzip file is cut off or damaged ({error}). Download it again.") from None
    except OSError as error:
        raise VectorFileError(f"{source}: cannot be read: {error.strerror or error}. Check the file.") from None


def _reader(head: bytes, source: Path) -> Reader:
    for mark, what in _REFUSED:
        if head.startswith(mark):
            raise VectorFileError(f"{source}: {what}.")
    header, _, sample = head.partition(b"\n")
    numbers = fields_of(header)
    if len(numbers) == 2 and all(map(bytes.isdigit, numbers)) and len(header) < 64:
        named = source.name.lower().removesuffix(".gz").endswith(".bin")
        if sample.translate(None, _CONTROL) != sample or (named and not _is_text(sample)):
            return binary.read
    return text.read


def _is_text(sample: bytes) -> bool:
    """Whether the bytes are UTF-8, a character cut at the end set aside."""
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        return error.start > len(sample) - 4
    return True
