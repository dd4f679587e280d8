"""Load kernel.cpp, the one pass over memory, where a compiler is at hand; without one, plain torch does the same.

`FROSTLINE_BACKEND` chooses, as it does for the row optimizers. The kernel uses one thread: it is limited by memory.
"""

from __future__ import annotations

from ctypes import CDLL, c_int64, c_void_p
from functools import cache
from importlib import resources

from torch import Tensor

from frostline.optim import compiler

SIZES = (1, 2, 4, 8)  # bytes of an entry that the kernel knows


def kernel() -> CDLL | None:
    """Return the compiled kernel, or None where plain torch is to be used."""
    return compiler.chosen(_load_once)[0]


def kernel_for(*tensors: Tensor) -> CDLL | None:
    """Return the kernel if it can work on these tensors: contiguous, on the CPU."""
    usable = all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)
    return kernel() if usable and tensors[0].element_size() in SIZES else None


@cache
def _load_once() -> tuple[CDLL | None, str]:
    try:
        library, why = compiler.load(resources.files(__package__).joinpath("kernel.cpp"))
    except compiler.BuildError as error:
        return None, str(error)
    pointer = c_void_p
    for size in SIZES:
        collect = getattr(library, f"frostline_collect_{size}")
        collect.restype, collect.argtypes = c_int64, [pointer, pointer, c_int64, c_int64, *[pointer] * 3]
        add = getattr(library, f"frostline_hash_{size}")
        add.restype, add.argtypes = None, [pointer, c_int64, c_int64, pointer]
        add_at = getattr(library, f"frostline_hash_at_{size}")
        add_at.restype, add_at.argtypes = None, [pointer, pointer, c_int64, pointer]
    return library, why
