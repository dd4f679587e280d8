"""What every room asks of the disk: a folder for what can be made again, and files that are never half written."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """Return where cache files of one kind are kept: $FROSTLINE_CACHE/kind, or the system's place for such files.

    Args:
        kind: The name of a folder in frostline's own, such as "vectors". One for each room that keeps something.

    Returns:
        A path; nothing is made there.

    Example:
        >>> cache_folder("vectors").name
        'vectors'
    """
    if own := os.environ.get("FROSTLINE_CACHE"):
        return Path(own) / kind
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        named = Path(os.environ.get("XDG_CACHE_HOME") or "")
        base = named if named.is_absolute() else Path.home() / ".cache"
    return base / "frostline" / kind


@contextlib.contextmanager
def replacing(path: Path, mode: int | None = None) -> Iterator[Path]:
    """Give the block a temporary file to write, and put it in the place of `path` if the block ends without an error.

    A reader sees the old file or the new one, whole. After an error nothing has changed and the temporary file is gone.

    Args:
        path: The file to write, in a folder that exists.
        mode: Its permissions. None: those of any new file, whatever the writer in the block gave it (safetensors lets
            only the owner read).

    Yields:
        The path of an empty file in the same folder: `.NAME.RANDOM.part`.

    Raises:
        OSError: The folder is missing, full or not writable. Callers say which argument named it.

    Example:
        >>> import tempfile
        >>> page = Path(tempfile.mkdtemp()) / "page.html"
        >>> with replacing(page) as unfinished:
        ...     _ = unfinished.write_text("<p>done")
        >>> page.read_text(), [file.name for file in page.parent.iterdir()]
        ('<p>done', ['page.html'])
    """
    unfinished = path.with_name(f".{path.name[:50]}.{secrets.token_hex(8)}.part")
    try:
        unfinished.touch()
        mode = unfinished.stat().st_mode if mode is None else mode
        yield unfinished
        unfinished.chmod(mode)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
