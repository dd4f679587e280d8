"""The folder for what can be made again: files that were read once, a kernel that was compiled once."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def folder(kind: str) -> Path:
    """Where cache files of one kind are kept: $FROSTLINE_CACHE/kind, or the place that the system has for such files.

    Args:
        kind: The name of a folder in frostline's own, such as "vectors". One for each room that keeps something.

    Returns:
        A path; nothing is made there.

    Example:
        >>> folder("vectors").name
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
