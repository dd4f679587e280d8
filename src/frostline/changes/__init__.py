"""What changed, exactly: the digest of a state, the difference of two, and files that lead from one to the next.

A state is what `state_dict()` has: of a live model, partial or not, on any number of processes, or of a checkpoint.
Names load on first use, so that commands start fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frostline.changes.apply import apply_changes
    from frostline.changes.chain import Changes
    from frostline.changes.differences import diff
    from frostline.changes.digests import digest

_HOME = {"Changes": "chain", "apply_changes": "apply", "diff": "differences", "digest": "digests"}

__all__ = ["Changes", "apply_changes", "diff", "digest"]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"frostline.changes.{_HOME[name]}"), name)
    raise AttributeError(f"module 'frostline.changes' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
