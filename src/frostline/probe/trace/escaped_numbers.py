"""Numbers that leave torch (`item`, `tolist`, `numpy`), and those that come back as arguments.

Python's numbers carry no notes, so a number that comes back is known by its value; one that was computed meanwhile, by
being in the function in which a number left and not given to it (no constant, argument or attribute); and data made
into a tensor, by being made after some left. It is a guess, only asked about parameters whose gradient did not arrive.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import numpy as np
from torch import Tensor

from frostline.probe.trace.provenance import Entry
from frostline.probe.trace.source_line import users_frame

LEAVING = {"item", "tolist", "numpy", "__array__", "__float__", "__int__", "__index__", "__complex__", "__dlpack__"}
_FROM_DATA = {"tensor", "as_tensor", "asarray", "full", "scalar_tensor"}
_MOST = 4096  # numbers of a list that left; of a tensor that may hold them


@dataclass(frozen=True)
class Left:
    """What left torch in one call: its numbers (None for an array), and in which of the user's functions."""

    entry: Entry
    numbers: set[float] | None
    code: CodeType | None


class Numbers:
    """All that has left torch so far."""

    def __init__(self) -> None:
        self.left: list[Left] = []

    def leave(self, entry: Entry, result: Any) -> None:
        """Note that `result`, a number, a list of them or an array, carries what `entry` says."""
        arrays = not isinstance(result, (int, float, complex, list))
        frame = users_frame()
        code = None if frame is None else frame.f_code
        self.left.append(Left(entry, None if arrays else _numbers_in(result), code))

    def back(self, name: str, args: Any, kwargs: Any) -> list[Entry]:
        """Entries of what comes back in a call of the function `name`."""
        numbers = _numbers_in((*args, *kwargs.values()))
        data = name in _FROM_DATA
        arrays = data and any(isinstance(one, np.ndarray) for one in args)
        floats = {number for number in numbers if isinstance(number, float)}
        frame = users_frame() if floats else None
        code = None if frame is None else frame.f_code
        computed = frame is not None and not floats <= _numbers_given_to(frame)
        return [
            left.entry
            for left in self.left
            if (arrays if left.numbers is None else (data and floats) or not numbers.isdisjoint(left.numbers))
            or (computed and left.code is code)
        ]

    def held_by(self, tensor: Tensor) -> list[Entry]:
        """Entries of what comes back in a tensor that was made out of sight, as by `torch.from_numpy`."""
        if not tensor.is_floating_point() or tensor.is_meta:
            return []
        numbers = _numbers_in(tensor.detach().tolist()) if tensor.numel() <= _MOST else set()
        return [left.entry for left in self.left if left.numbers is None or not numbers.isdisjoint(left.numbers)]

    def equal_to(self, number: float) -> list[Entry]:
        """Entries of numbers that left and are `number`."""
        return [left.entry for left in self.left if left.numbers is None or number in left.numbers]


def _numbers_given_to(frame: FrameType) -> set[float]:
    """The numbers that a function has without computing: constants, arguments, globals, and what stands in those."""
    code = frame.f_code
    names = (*code.co_varnames[: code.co_argcount + code.co_kwonlyargcount], *code.co_freevars)
    given = [frame.f_locals.get(name) for name in names] + [frame.f_globals.get(name) for name in code.co_names]
    return _numbers_in([code.co_consts, given, [getattr(one, "__dict__", None) for one in given]])


def _numbers_in(value: Any) -> set[float]:
    found: set[float] = set()
    waiting: list[Any] = [value]
    while waiting and len(found) < _MOST:
        one = waiting.pop()
        if isinstance(one, (list, tuple, dict)):
            waiting.extend(one.values() if isinstance(one, dict) else one)
        elif isinstance(one, (int, float)) and not isinstance(one, bool):
            found.add(one)
    return found
