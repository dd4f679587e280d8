"""Memory that a mapped file takes while it is read: given back when the reader is done."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray


def give_back(array: NDArray[Any]) -> None:
    """Give the system back the memory that reading a mapped file took, all of it; the array stays what it was.

    Args:
        array: Any view of `numpy.memmap(..., mode="r")`, such as what `load` returns. Another array is left alone.

    Cost: a system call. What is used again is read again, as a rule from what the system keeps of the file.
    """
    owner: Any = array
    read_only = False  # elsewhere the memory may hold what somebody wrote, and nothing else does
    while isinstance(owner, np.ndarray):
        read_only = read_only or (isinstance(owner, np.memmap) and owner.mode == "r")
        owner = owner.base
    if read_only and hasattr(mmap.mmap, "madvise"):
        owner.madvise(mmap.MADV_DONTNEED)
