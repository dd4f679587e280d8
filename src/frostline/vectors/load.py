"""Load a file of word vectors: detect its format, choose the reader, cache the result."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from frostline.errors import VectorFileError
from frostline.vectors import binary, packed, safetensors_file, text
from frostline.vectors.load_cache import CacheEntry
from frostline.vectors.parse_lines import fields_of
from frostline.vectors.table import Chunk, Vectors, in_memory

Reader = Callable[[BinaryIO, str], Iterator[Chunk]]

_SAMPLE = 4096  # bytes from which the format is detected
_FASTTEXT = (793_712_314).to_bytes(4, "little")
_CONTROL = bytes(set(range(32)) - set(b"\t\n\r"))
_UNSUPPORTED = [
    (_FASTTEXT, "is a fastText .bin model. Pass the .vec file that comes with it, which holds the same words"),
    (packed.ZIP, "is a zip archive in another archive. Unpack the outer one, and pass the inner"),
    (b"BZh", "is packed with bzip2. Unpack it first: `bunzip2 FILE`"),
    (b"\xfd7zXZ", "is packed with xz. Unpack it first: `unxz FILE`"),
    (b"\x80", "is a pickle, which is never loaded. In gensim: `vectors.save_word2vec_format(NEW, binary=True)`"),
    (b"\x93NUMPY", "is a numpy array without words. Use `Vectors(words, numpy.load(FILE))`"),
]


def load(path: str | os.PathLike[str], *, cache: bool = True, member: str | None = None) -> Vectors:
    """Load a file of word vectors; it is parsed the first time and memory-mapped after that.

    Args:
        path: GloVe text, word2vec text, fastText .vec or word2vec .bin, any of them also gzipped or in a .zip, or a
            .safetensors file written by `save`. The format is detected from the content; for a file with a header, the
            suffix .bin is a hint.
        cache: Store the parsed file in the user's cache folder ($FROSTLINE_CACHE, or the system's), and open that next
            time, while the file is the same one and has not changed. .safetensors files need no cache.
        member: The file in a .zip; may be left out if there is only one.

    Returns:
        Vectors. Of a word that is in the file twice, the first is used; `duplicates` says of which words. Values are
        float32(float64(text)).

    Raises:
        VectorFileError: The file cannot be read as word vectors: path, line, what is wrong, and what to do.
            Text must be UTF-8 with finite numbers. Errors are: an empty word, a line with too few or too many numbers,
            a header with another count, a file that is cut off, a pipe, and a .zip of several files of which none is
            named: the message lists them.

    Warns:
        UserWarning: Words are listed again with another vector; or others can write to the cache folder, so that it is
            not used.

    Fields are separated by SPACE and TAB only, and lines end with LF or CRLF; a no-break space or U+2028 belongs to a
    word. A word may contain spaces: the last D fields of a line are its vector. If the field before them is a number,
    that is an error: the line may as well hold one number too many.
    Empty lines are skipped. The last line of a text file may lack its line end; a number cut off there is not noticed.

    Cost: reading is one pass with bounded memory; opening again takes milliseconds, whatever the size. Text is read
    several times faster if polars is installed (`pip install 'frostline[vectors]'`), with the same result.

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
        if member is None and _is_safetensors(source):
            return safetensors_file.open_file(source)
        entry = CacheEntry(source, member)
    except OSError as error:
        raise VectorFileError(f"{source}: cannot be opened: {error.strerror}. Check the path.") from None
    vectors = entry.open() or entry.store(lambda: _read(source, member, entry)) if cache else None
    vectors = vectors or in_memory(_read(source, member, entry))
    if vectors.duplicates.conflicting:
        warnings.warn(f"{source}: {vectors.duplicates}. The first vector of each is used.", stacklevel=2)
    return vectors


def _is_safetensors(source: Path) -> bool:
    with source.open("rb") as file:
        head = file.read(9)  # the length of the header, 8 bytes, and the start of its JSON
    return source.suffix == ".safetensors" or (head[8:] == b"{" and head[4:8] == b"\0\0\0\0")


def _read(source: Path, member: str | None, entry: CacheEntry) -> Iterator[Chunk]:
    """Yield the chunks of the file; raise VectorFileError for any fault of it, never OSError."""
    # OSError is left to the writer of the cache: there it means "no cache", not a bad source.
    entry.wait_for_tick()
    name = str(source) if member is None else f"{source}:{member}"
    try:
        with packed.opened(source, member) as stream:
            head = stream.read(_SAMPLE)
            stream.seek(0)
            yield from _reader(head, name)(stream, name)
        if not entry.source_unchanged():
            raise VectorFileError(f"{source}: changed while it was read. Load it again when its writer is done.")
    except OSError as error:
        raise VectorFileError(f"{source}: cannot be read: {error.strerror or error}. Check the file.") from None


def _reader(head: bytes, name: str) -> Reader:
    """Return the reader for the file `name`, which starts with `head`."""
    for magic, reason in _UNSUPPORTED:
        if head.startswith(magic):
            raise VectorFileError(f"{name}: {reason}.")
    header, _, sample = head.partition(b"\n")
    fields = fields_of(header)
    if len(fields) == 2 and all(map(bytes.isdigit, fields)) and len(header) < 64:
        named = name.lower().removesuffix(".gz").removesuffix(".zip").endswith(".bin")
        if sample.translate(None, _CONTROL) != sample or (named and not _is_text(sample)):
            return binary.read
    return text.read


def _is_text(sample: bytes) -> bool:
    """Return whether the bytes are UTF-8, apart from a character that is cut off at the end."""
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        return error.start > len(sample) - 4
    return True
