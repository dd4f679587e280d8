"""What other libraries call: a callback for the Trainer of transformers.

Each file here imports the library that it is named after, and is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module

_LIBRARIES = ("transformers",)


def __getattr__(name: str) -> object:
    if name in _LIBRARIES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
