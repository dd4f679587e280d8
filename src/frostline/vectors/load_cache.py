"""Cache of vector files that have been read, in a form that opens in milliseconds.

The name of a cache file holds the (hashed) absolute path, size and modification time of its source, so a source that
has changed is read again. A cache file is written atomically and flushed to disk; its own modification time is then set
to a fixed date, the seal: any later write to it breaks the seal, and the file is ignored. Any other fault of the file
or its folder means reading the source again, never an error.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from frostline.errors import VectorFileError
from frostline.files import cache_folder
from frostline.vectors import safetensors_file
from frostline.vectors.table import Chunk, Vectors

_SEAL = 1_000_000_000 * 10**9  # 2001-09-09: even seconds, which every file system can store
_TICK = 20_000_000  # nanoseconds within which two changes of a file may get the same modification time
_VERSION = "1"  # increased when reading the same file gives another result


class CacheEntry:
    """The cache file for one source file in its present state."""

    def __init__(self, source: Path) -> None:
        self._source = source.absolute()
        self._state = self._read_state()
        self._name = hashlib.sha256(os.fsencode(self._source)).hexdigest()[:32]
        size, modified = self._state
        self.path = cache_folder("vectors") / f"{self._name}-{size}-{modified}-{_VERSION}.safetensors"

    def _read_state(self) -> tuple[int, int]:
        stat = self._source.stat()
        return stat.st_size, stat.st_mtime_ns

    def source_unchanged(self) -> bool:
        """Return whether the source has not changed since this entry was made."""
        return self._read_state() == self._state

    def open(self) -> Vectors | None:
        """Return the cached vectors, or None."""
        try:
            if self.path.stat().st_mtime_ns != _SEAL:
                return None
            return safetensors_file.open_file(self.path, trusted=True)
        except (OSError, VectorFileError):
            return None

    def store(self, read: Callable[[], Iterable[Chunk]]) -> Vectors | None:
        """Write the chunks of the source to the cache and open it; None if the folder is not writable."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            safetensors_file.write(read(), self.path, modified_ns=_SEAL)
        except OSError:
            return None
        self._remove_stale()
        return self.open()

    def _remove_stale(self) -> None:
        """Remove the cache files of earlier states of the source, and what a killed process left half-written."""
        abandoned = time.time() - 3600
        for other in self.path.parent.glob(f"*{self._name}-*"):
            with suppress(OSError):
                if other != self.path and (other.suffix != ".part" or other.stat().st_mtime < abandoned):
                    other.unlink()

    def wait_for_tick(self) -> None:
        """Wait until a later change of a source that was written just now would get another modification time."""
        age = time.time_ns() - self._state[1]
        if 0 <= age < _TICK:
            time.sleep((_TICK - age) / 1e9)
