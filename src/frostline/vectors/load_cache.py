"""Files that were read once, kept in the user's cache folder in a form that opens in milliseconds.

The name of a cache file holds the absolute path (hashed), size and modification time of its source, so a source that
changed is read again. A cache file is written under a temporary name and renamed when it is whole and on the disk;
its own modification time is then set to a fixed date, the seal: whatever writes to it later breaks the seal, and it is
not used. Anything else that is wrong with it, or with the folder, means reading the source again: never an error.
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
from frostline.vectors import safetensors_file as tensors
from frostline.vectors.table import Chunk, Vectors

_SEAL = 1_000_000_000 * 10**9  # 2001-09-09: even seconds, which every file system can hold
_TICK = 20_000_000  # nanoseconds within which two changes of a file may get the same modification time
_FORM = "1"  # counted up when reading changes its mind about a file


def folder() -> Path:
    """Where cache files are kept: $FROSTLINE_CACHE/vectors, or the place that the system has for such files."""
    return cache_folder("vectors")


class Entry:
    """The place of one source file, as it is now, in the cache."""

    def __init__(self, source: Path) -> None:
        self._source = source.absolute()
        self._stamp = self._now()
        self._name = hashlib.sha256(os.fsencode(self._source)).hexdigest()[:32]
        size, modified = self._stamp
        self.path = folder() / f"{self._name}-{size}-{modified}-{_FORM}.safetensors"

    def _now(self) -> tuple[int, int]:
        stat = self._source.stat()
        return stat.st_size, stat.st_mtime_ns

    def unchanged(self) -> bool:
        """Whether the source still is what it was when this entry was made."""
        return self._now() == self._stamp

    def open(self) -> Vectors | None:
        """What was kept of the source, or None."""
        try:
            if self.path.stat().st_mtime_ns != _SEAL:
                return None
            return tensors.open_file(self.path, trusted=True)
        except (OSError, VectorFileError):
            return None

    def keep(self, chunks: Callable[[], Iterable[Chunk]]) -> Vectors | None:
        """Write what was read of the source and open it, or None where the folder cannot be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            tensors.write(chunks(), self.path, modified_ns=_SEAL)
        except OSError:
            return None
        self._tidy()
        return self.open()

    def _tidy(self) -> None:
        """Remove what was kept of earlier states of the source, and what a killed process left half-written."""
        abandoned = time.time() - 3600
        for other in self.path.parent.glob(f"*{self._name}-*"):
            with suppress(OSError):
                if other != self.path and (other.suffix != ".part" or other.stat().st_mtime < abandoned):
                    other.unlink()

    def settle(self) -> None:
        """Wait until a later change of a source that was written just now would get another modification time."""
        age = time.time_ns() - self._stamp[1]
        if 0 <= age < _TICK:
            time.sleep((_TICK - age) / 1e9)
