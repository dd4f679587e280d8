"""What an object holds besides its `__dict__`: its `__slots__`, and the attributes of its classes."""

from __future__ import annotations

import functools
import sys
from typing import Any

_NONE = object()
_FOREIGN = {*sys.stdlib_module_names, "torch"} - {"__main__"}


def slots_of(value: object) -> dict[str, object]:
    """Return the name and value of each of the `__slots__` of an object; of torch's and Python's own classes none."""
    kind: Any = type(value)
    found = {name: getattr(value, name, _NONE) for name in _slot_names(kind)}
    return {name: item for name, item in found.items() if item is not _NONE}


def own_attributes(kind: type) -> tuple[Any, ...]:
    """Return the values of the attributes of a class and its bases; of torch's and Python's own classes none."""
    return tuple(value for each in _own_classes(kind) for value in vars(each).values())


@functools.cache
def _slot_names(kind: Any) -> tuple[str, ...]:
    names: list[str] = []
    for each in _own_classes(kind):
        slots = vars(each).get("__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    return tuple(name for name in names if not name.startswith("__"))


@functools.cache
def _own_classes(kind: Any) -> tuple[type, ...]:
    return tuple(each for each in kind.__mro__ if each.__module__.partition(".")[0] not in _FOREIGN)
