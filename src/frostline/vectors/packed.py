"""Open a file of word vectors as a stream of bytes: plain, gzipped, or a member of a zip archive."""

from __future__ import annotations

import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from frostline.errors import VectorFileError
from frostline.printing import listed

ZIP = b"PK\x03\x04"
_GZIP = b"\x1f\x8b"
_BUFFER = 1 << 20
_MOST = 20  # members in a message


@contextmanager
def opened(path: Path, member: str | None) -> Iterator[BinaryIO]:
    """Open what `path` packs, or the file itself, for reading; it can be read again from its start.

    Args:
        path: The file.
        member: The file in a zip archive; may be left out if the archive holds only one.

    Raises:
        VectorFileError: The archive or the gzip file is damaged, here or while the block reads; or the archive holds
            no such member, several, or one with a password.
        OSError: The file cannot be read.
    """
    try:
        with path.open("rb") as raw:
            magic = raw.read(len(ZIP))
            raw.seek(0)
            if magic == ZIP:
                with zipfile.ZipFile(raw) as archive, archive.open(_choose(archive, path, member)) as inside:
                    yield cast(BinaryIO, io.BufferedReader(inside, _BUFFER))
            elif member is not None:
                raise VectorFileError(f"{path}: is not a zip archive, so it has no member {member!r}. Leave it out.")
            elif magic.startswith(_GZIP):
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    yield cast(BinaryIO, unpacked)
            else:
                yield raw
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        kind = "zip archive" if magic == ZIP else "gzip file"
        raise VectorFileError(f"{path}: the {kind} is cut off or damaged ({error}). Download it again.") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, UnicodeDecodeError) as error:
        if magic != ZIP:
            raise
        raise VectorFileError(
            f"{path}: the zip archive cannot be read ({error}). Unpack it, or get it again."
        ) from None


def _choose(archive: zipfile.ZipFile, path: Path, member: str | None) -> zipfile.ZipInfo:
    """Return the member to read; those that an operating system adds do not count."""
    files = [
        info
        for info in archive.infolist()
        if not info.is_dir() and not info.filename.startswith("__MACOSX/") and not info.filename.endswith("/.DS_Store")
    ]
    names = [info.filename for info in files]
    if member is None and len(files) == 1:
        return files[0]
    if member in names:
        return files[names.index(member)]
    if not files:
        raise VectorFileError(f"{path}: the zip archive is empty. Download it again.")
    shown = listed(names, most=_MOST)
    if member is not None:
        raise VectorFileError(f"{path}: has no member {member!r}, but {shown}. Name one of these.")
    raise VectorFileError(
        f"{path}: the zip archive holds {len(files)} files: {shown}. "
        f"Name one: load(path, member={names[0]!r}), or {path}:{names[0]} on the command line."
    )


def split_member(name: str) -> tuple[str, str | None]:
    """Return the path and the member that `archive.zip:member` names; any other name is a path.

    Example:
        >>> split_member("glove.6B.zip:glove.6B.50d.txt"), split_member("wiki.vec")
        (('glove.6B.zip', 'glove.6B.50d.txt'), ('wiki.vec', None))
    """
    index = name.lower().find(".zip:")
    if index < 0 or Path(name).exists():
        return name, None
    return name[: index + 4], name[index + 5 :]
