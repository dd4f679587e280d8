"""Files on disk: the folder for caches, and atomic writes, so that no file is ever half written.

A cache is opened without asking, so it must not be possible that somebody else put a file there: `private_folder` makes
a folder for this user alone, and `is_private` says of a file that is open whether only this user can have written it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from frostline.errors import DataFileError

# Left by a process that was killed while it wrote: by `replacing`, and by safetensors under a name of its choice.
_UNFINISHED = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.part|\.tmp[A-Za-z0-9]{6}")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's <fcntl.h>


def cache_folder(kind: str) -> Path:
    """Return the folder for cache files of one kind: $FROSTLINE_CACHE/kind, or one in the system's cache folder.

    Args:
        kind: The name of a subfolder, such as "vectors"; each room that caches something has one.

    Returns:
        The path; the folder is not created.

    Raises:
        FileNotFoundError: The user has no home folder, as in a container that runs under an arbitrary id.

    Example:
        >>> cache_folder("vectors").name
        'vectors'
    """
    if own := os.environ.get("FROSTLINE_CACHE"):
        return Path(own) / kind
    try:
        if sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        elif sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        else:
            named = Path(os.environ.get("XDG_CACHE_HOME") or "")
            base = named if named.is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # neither $HOME nor an entry in the list of users
        raise FileNotFoundError(errno.ENOENT, "no home folder for a cache; set FROSTLINE_CACHE") from None
    return base / "frostline" / kind


def private_folder(kind: str) -> Path:
    """Return the folder for cache files of one kind, made for this user alone if it is missing.

    Raises:
        NotPrivateError: Somebody else can write to the folder, so nothing in it can be trusted.
        OSError: It cannot be made.
    """
    folder = cache_folder(kind)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_private(folder.stat()):
        raise NotPrivateError(errno.EACCES, "others can write to it", str(folder))
    return folder


class NotPrivateError(PermissionError):
    """A cache folder that somebody else can write to."""


def is_private(stat: os.stat_result) -> bool:
    """Return whether only this user can have written the file or folder with this `stat`."""
    return not hasattr(os, "getuid") or (stat.st_uid == os.getuid() and not stat.st_mode & 0o022)


@contextlib.contextmanager
def replacing(path: Path, mode: int | None = None) -> Iterator[Path]:
    """Write a file atomically: the block writes a temporary file, which replaces `path` if no error was raised.

    A reader sees the old file or the new one, whole, whenever the process is killed or the power fails: the new one is
    on the disk before it gets its name. After an error nothing has changed and the temporary file is gone.

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
        with unfinished.open("r+b") as file:
            os.fsync(file.fileno())
        unfinished.chmod(mode)
        unfinished.replace(path)
        _flush_folder(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def is_unfinished(name: str, of: Collection[str]) -> bool:
    """Return whether a file of this name was left by a process that was killed while it wrote one of the files `of`."""
    found = _UNFINISHED.fullmatch(name)
    return found is not None and (found["name"] is None or found["name"] in of)


def remove_unfinished(folder: Path, of: Collection[str]) -> None:
    """Remove what `replacing` left of these files in killed processes. For a folder in which nobody else writes now.

    Files with names of safetensors' choice stay: in a folder such as /tmp other programs have such names, too.
    """
    for path in folder.iterdir():
        found = _UNFINISHED.fullmatch(path.name)
        if found is not None and found["name"] in of:
            with contextlib.suppress(OSError):  # it does no harm
                path.unlink()


def standard_input() -> BinaryIO:
    """Return stdin, to read bytes from.

    Raises:
        DataFileError: It is closed (`command <&-`).
    """
    if sys.stdin is None:
        raise DataFileError("stdin is closed. Name a file, or pipe one in.")
    return sys.stdin.buffer


def replace_folder(new: Path, target: Path) -> None:
    """Give the folder `new` the name `target`; what had that name is removed.

    On Linux the two names are exchanged in one step, so a process that is killed leaves either the old folder or the
    new one under `target`. Elsewhere there is a moment in which neither has the name; an error undoes it.

    Raises:
        OSError: It cannot be renamed; `target` is as it was.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("new", "old"):
        ...     (folder / name).mkdir()
        ...     (folder / name / name).touch()
        >>> replace_folder(folder / "new", folder / "old")
        >>> [str(path.relative_to(folder)) for path in folder.rglob("*")]
        ['old', 'old/new']
    """
    if not target.exists():
        new.rename(target)
    elif _exchange(new, target):
        shutil.rmtree(new, ignore_errors=True)
    else:
        old = new.with_name(f"{new.name}.old")
        target.rename(old)
        try:
            new.rename(target)
        except BaseException:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; return False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    names = os.fsencode(first.absolute()), os.fsencode(second.absolute())
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _flush_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, where the system can."""
    with contextlib.suppress(OSError):  # the file itself is safe: after a power failure its old name may be back
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
