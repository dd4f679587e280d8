"""Cache of vector files that have been read, in a form that opens in milliseconds.

The name of a cache file holds hashes of two things: where its source is (absolute path, and member of an archive), and
the state of the source. The state is its inode, size, times of modification and of change, and a digest of its content:
all of it up to 1 MiB, else its head, its tail and samples in between. A file that `cp -p`, `mv` or an archive puts in
the place of another can have the size and modification time of that one, but not its inode and time of change too; the
digest is for systems on which these mean little.

A cache file is written atomically; its own modification time is then set to a fixed date, the seal: any later write to
it breaks the seal, and the file is ignored. So is one that somebody else can have written, and any other fault of the
file or its folder means reading the source again, never an error. A folder that others can write to is said, once.

When a file is added, those are removed whose source is gone or has changed, and, if all together take more than 20 GB,
those that were not opened for longest.
"""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from frostline.errors import VectorFileError
from frostline.files import NotPrivateError, cache_folder, is_private, private_folder
from frostline.vectors import safetensors_file
from frostline.vectors.table import Chunk, Vectors

_KIND = "vectors"
_SEAL = 1_000_000_000 * 10**9  # 2001-09-09: even seconds, which every file system can store
_TICK = 20_000_000  # nanoseconds within which two changes of a file may get the same times
_VERSION = "2"  # increased when reading the same file gives another result
_WHOLE = 1 << 20  # bytes up to which the digest is of the whole source
_SAMPLES, _SAMPLE = 16, 1 << 14
_MOST_BYTES = 20 * 10**9
_NAMES, _UNFINISHED = f"{'?' * 32}-*.safetensors", f".{'?' * 32}-*.part"
_ABANDONED = 3600  # seconds after which an unfinished file is of a process that was killed


@dataclass(frozen=True)
class CachedFile:
    """A file of the cache.

    Attributes:
        path: The file.
        source: The file of word vectors that it was read from; None if it cannot be told.
        member: The member of that archive; None if the source is not one.
        bytes: Its size.
        opened: When it was last opened, in seconds since 1970.
    """

    path: Path
    source: Path | None
    member: str | None
    bytes: int
    opened: float


class CacheEntry:
    """The cache file for one source file, or one member of an archive, in its present state."""

    def __init__(self, source: Path, member: str | None = None) -> None:
        self._source = source.absolute()
        self._key = [str(self._source), member]
        self._times = self._read_times()
        self._name = _short_hash(self._key)

    def _read_times(self) -> tuple[int, int, int, int]:
        stat = self._source.stat()
        return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns

    def source_unchanged(self) -> bool:
        """Return whether the source has not changed since this entry was made."""
        return self._read_times() == self._times

    @cached_property
    def path(self) -> Path:
        """The cache file, in a folder that exists and is this user's alone; OSError if there is none."""
        state = _short_hash([_VERSION, self._times, _digest(self._source)])
        return private_folder(_KIND) / f"{self._name}-{state}.safetensors"

    def open(self) -> Vectors | None:
        """Return the cached vectors, or None."""
        try:
            path = self.path
            with path.open("rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_mtime_ns != _SEAL or not is_private(stat):
                    return None
                vectors, source = safetensors_file.map_file(file, path, trusted=True)
            if source != self._key:  # somebody has renamed a cache file
                return None
            os.utime(path, ns=(time.time_ns(), _SEAL))
            return vectors
        except NotPrivateError as error:
            warnings.warn(
                f"{error.filename}: the cache of word vectors is not used, because others can write to it. "
                "Remove it, or name another folder in FROSTLINE_CACHE.",
                stacklevel=3,
            )
            return None
        except (OSError, VectorFileError):
            return None

    def store(self, read: Callable[[], Iterable[Chunk]]) -> Vectors | None:
        """Write the chunks of the source to the cache and open it; None if there is no cache to write to."""
        try:
            path = self.path
            safetensors_file.write(read(), path, source=self._key, modified_ns=_SEAL, mode=0o600)
        except OSError:
            return None
        vectors = self.open()
        _clean(path, self._name)
        return vectors

    def wait_for_tick(self) -> None:
        """Wait until a later change of a source that was written just now would get other times."""
        ages = [time.time_ns() - changed for changed in self._times[2:]]
        time.sleep(max((_TICK - age for age in ages if 0 <= age < _TICK), default=0) / 1e9)


def cached_files() -> list[CachedFile]:
    """Return the files of the cache of word vectors, the one that was opened last first.

    Example:
        >>> all(file.bytes > 0 for file in cached_files())
        True
    """
    found = []
    for path in _files(_NAMES):
        with suppress(OSError):
            stat = path.stat()
            source = safetensors_file.read_source(path)
            read_from, member = source if isinstance(source, list) and len(source) == 2 else (None, None)
            where = None if read_from is None else Path(str(read_from))
            found.append(CachedFile(path, where, None if member is None else str(member), stat.st_size, stat.st_atime))
    return sorted(found, key=lambda file: -file.opened)


def clear_cache() -> int:
    """Remove all files of the cache of word vectors; return how many bytes they took.

    Vectors that are in use stay valid: the system keeps a mapped file until it is closed. (Windows does not remove it.)

    Example:
        >>> clear_cache() >= 0
        True
    """
    freed = 0
    for path in [*_files(_NAMES), *_files(_UNFINISHED)]:
        with suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            freed += size
    return freed


def _files(pattern: str) -> list[Path]:
    """Return the files of the cache folder with such a name; none if there is no such folder."""
    try:
        return list(cache_folder(_KIND).glob(pattern))
    except OSError:
        return []


def _clean(new: Path, name: str) -> None:
    """Remove cache files that are of no use any more, and those beyond what the cache may take."""
    left = _MOST_BYTES
    for file in cached_files():
        stale = file.path.name.startswith(f"{name}-") or (file.source is not None and not file.source.exists())
        left -= file.bytes
        if file.path != new and (stale or left < 0):
            left += file.bytes
            with suppress(OSError):
                file.path.unlink()
    for part in _files(_UNFINISHED):
        with suppress(OSError):
            if part.stat().st_mtime < time.time() - _ABANDONED:
                part.unlink()


def _short_hash(key: object) -> str:
    return hashlib.sha256(ascii(key).encode()).hexdigest()[:32]


def _digest(path: Path) -> str:
    """Return a digest of a file: of all of it if it is small, else of its head, its tail and samples in between."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _WHOLE:
            digest.update(file.read())
        else:
            for index in range(_SAMPLES):
                file.seek((size - _SAMPLE) * index // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
