"""What other libraries call: callbacks for the Trainers of transformers and Lightning, a plugin for pytest.

Each file here that is named after a library imports it, and is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module

_LIBRARIES = ("lightning", "pytest", "transformers")


def __getattr__(name: str) -> object:
    if name in _LIBRARIES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
