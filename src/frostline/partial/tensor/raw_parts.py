"""Compare and copy what is learned past torch: on the CPU, in a few microseconds.

Every use of a weight compares its parts, because `.data`, other processes and C++ write to memory uncounted; and every
step of an optimizer copies one into the other. So numpy looks at the memory by its address, which the caller checks
each time. (`tensor.numpy()` would show it too, but after that nobody could resize the memory of the tensor.)
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from torch import Tensor

from frostline.partial.tensor.indices import LearnedIndices

_MANY = 4096  # entries


class RawParts:
    """The memory of a frozen and a learned part, for as long as they stay where they are.

    Many entries lie apart, each in a line of the cache of its own: reading them all in every forward would cost as much
    as their gradient. They are compared with a copy of what was learned when both were the same, and with the memory at
    a few hundred places.
    """

    def __init__(self, frozen: Tensor, learned: Tensor, indices: LearnedIndices) -> None:
        self._is_at = _memory(frozen), _memory(learned)
        self.many = False
        places = indices.places_in(frozen)
        kept = bool(learned.numel() and frozen.data_ptr() and learned.data_ptr())
        self._usable = kept and places is not None and learned.is_contiguous() and frozen.dtype == learned.dtype
        if places is None or not self._usable:
            return
        width = places.width * max(1, frozen.itemsize // 8)
        self._frozen, self._learned = _raw(frozen), _raw(learned)
        if width > 1:
            self._frozen, self._learned = self._frozen.reshape(-1, width), self._learned.reshape(-1, width)
        starts = places.starts.cpu().numpy()
        if len(starts) == starts[-1] - starts[0] + 1 and (np.diff(starts) == 1).all():  # one expert, or new tokens
            self._places: np.ndarray | slice = slice(starts[0], starts[-1] + 1)
        else:
            self._places = starts
        self.many = indices.kind == "entries" and len(starts) > _MANY
        self._copy: np.ndarray | None = None  # made once both are known to hold the same

    def fits(self, frozen: Tensor, learned: Tensor) -> bool:
        """Return whether both parts are still where they were, in the same shape and dtype."""
        return self._is_at == (_memory(frozen), _memory(learned))

    def same(self) -> bool | None:
        """Return whether both hold the same; None if torch must tell: other dtypes, or memory with gaps."""
        if not self._usable:
            return None
        if self._copy is not None and not (self._copy == self._learned).all():
            return False
        if isinstance(self._places, slice):
            return bool((self._frozen[self._places] == self._learned).all())
        sample = slice(None, None, 1 if self._copy is None else len(self._places) // 256)
        same = bool((self._frozen.take(self._places[sample], 0) == self._learned[sample]).all())
        if same and self._copy is None:
            self.remember()
        return same

    def remember(self) -> None:
        """Note that both hold the same now."""
        if self.many:
            if self._copy is None:
                self._copy = np.empty_like(self._learned)
            np.copyto(self._copy, self._learned)

    def copy(self) -> bool:
        """Write what is learned to the frozen part; return False if torch must do it."""
        if self._usable:
            self._frozen[self._places] = self._learned
        return self._usable


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """Return what must not change as long as numpy looks at the memory; a tensor converted may come to its address."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _raw(tensor: Tensor) -> np.ndarray:
    """Return the memory of a contiguous tensor as integers, one an element; or several, if it has more than 8 bytes."""
    buffer = (ctypes.c_char * (tensor.numel() * tensor.itemsize)).from_address(tensor.data_ptr())
    return np.frombuffer(memoryview(buffer).cast("B"), dtype=f"u{min(8, tensor.itemsize)}")
