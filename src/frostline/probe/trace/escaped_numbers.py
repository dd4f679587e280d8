"""Numbers that leave torch (`item`, `tolist`, `numpy`) and return as arguments.

Python numbers cannot be traced, so a returning value is matched heuristically: by equality; because it was computed in
the function where a value left, and was not given to that function as a constant, argument or attribute; or, for data
made into a tensor, because some value left before. Only parameters whose gradient did not arrive are asked about.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import numpy as np
from torch import Tensor

from frostline.probe.trace.provenance import Provenance
from frostline.probe.trace.source_line import user_frame

ESCAPES = {"item", "tolist", "numpy", "__array__", "__float__", "__int__", "__index__", "__complex__", "__dlpack__"}
_TENSOR_FROM_DATA = {"tensor", "as_tensor", "asarray", "full", "scalar_tensor"}
_MOST = 4096  # values compared: of a list that left, of a tensor that may hold them


@dataclass(frozen=True)
class Escape:
    """One call by which values left torch.

    Attributes:
        provenance: Of the tensor that they left.
        values: The numbers; None for an array.
        code: The user's function that made the call.
    """

    provenance: Provenance
    values: set[float] | None
    code: CodeType | None


class EscapedNumbers:
    """Everything that has left torch so far."""

    def __init__(self) -> None:
        self.escapes: list[Escape] = []

    def note(self, provenance: Provenance, result: Any) -> None:
        """Note that `result`, a number, a list of them or an array, has left a tensor with this provenance."""
        is_array = not isinstance(result, (int, float, complex, list))
        frame = user_frame()
        code = None if frame is None else frame.f_code
        self.escapes.append(Escape(provenance, None if is_array else _numbers_in(result), code))

    def returning_in_call(self, function: str, args: Any, kwargs: Any) -> list[Provenance]:
        """Return the provenance of the values that return as arguments of the torch function named `function`."""
        values = _numbers_in((*args, *kwargs.values()))
        from_data = function in _TENSOR_FROM_DATA
        arrays = from_data and any(isinstance(argument, np.ndarray) for argument in args)
        floats = {value for value in values if isinstance(value, float)}
        frame = user_frame() if floats else None
        code = None if frame is None else frame.f_code
        computed = frame is not None and not floats <= _numbers_given_to(frame)
        return [
            escape.provenance
            for escape in self.escapes
            if (arrays if escape.values is None else (from_data and floats) or not values.isdisjoint(escape.values))
            or (computed and escape.code is code)
        ]

    def returning_in_tensor(self, tensor: Tensor) -> list[Provenance]:
        """Return the provenance of the values in a tensor made where no call is seen, as by `torch.from_numpy`."""
        if not tensor.is_floating_point() or tensor.is_meta:
            return []
        values = _numbers_in(tensor.detach().tolist()) if tensor.numel() <= _MOST else set()
        return [
            escape.provenance
            for escape in self.escapes
            if escape.values is None or not values.isdisjoint(escape.values)
        ]

    def equal_to(self, value: float) -> list[Provenance]:
        """Return the provenance of what left and equals `value`."""
        return [escape.provenance for escape in self.escapes if escape.values is None or value in escape.values]


def _numbers_given_to(frame: FrameType) -> set[float]:
    """Return the numbers that a function has without computing: constants, arguments, globals, and their attributes."""
    code = frame.f_code
    names = (*code.co_varnames[: code.co_argcount + code.co_kwonlyargcount], *code.co_freevars)
    given = [frame.f_locals.get(name) for name in names] + [frame.f_globals.get(name) for name in code.co_names]
    return _numbers_in([code.co_consts, given, [getattr(value, "__dict__", None) for value in given]])


def _numbers_in(value: Any) -> set[float]:
    found: set[float] = set()
    waiting: list[Any] = [value]
    while waiting and len(found) < _MOST:
        item = waiting.pop()
        if isinstance(item, (list, tuple, dict)):
            waiting.extend(item.values() if isinstance(item, dict) else item)
        elif isinstance(item, (int, float)) and not isinstance(item, bool):
            found.add(item)
    return found
