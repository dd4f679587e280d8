"""Files on disk: the folder for caches, and atomic writes, so that no file is ever half written."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """Return the folder for cache files of one kind: $FROSTLINE_CACHE/kind, or one in the system's cache folder.

    Args:
        kind: The name of a subfolder, such as "vectors"; each room that caches something has one.

    Returns:
        The path; the folder is not created.

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
    """Write a file atomically: the block writes a temporary file, which replaces `path` if no error was raised.

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
