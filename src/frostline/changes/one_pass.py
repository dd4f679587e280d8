"""Find the entries of two tensors that differ by their bits, in one pass over memory.

Letters used for shapes in this file:
    n  entries of the tensor      k  entries that differ in one part of it

Entries are integers of the size of the dtype, so -0.0 is not 0.0 and a NaN is itself; complex128, for which there is no
such integer, is two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from frostline.changes.compiled import kernel_for

CHUNK = 1 << 22  # entries looked at in one call
_CPU_CHUNK = 1 << 18  # without the kernel: what stays in a cache between passes
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their size in bytes


@dataclass(frozen=True, eq=False)
class Differing:
    """The entries that differ in one part of a tensor.

    Attributes:
        index: Their flat indices in the tensor, ascending, int64, shape (k,).
        new: Their bits now, integers, shape (k,), or (k, 2) of complex128.
        old: Their bits before, likewise.
    """

    index: Tensor
    new: Tensor
    old: Tensor


def bits_of(tensor: Tensor) -> Tensor:
    """Return the bits of a contiguous tensor as integers in the same memory: shape (n,), or (n, 2) of complex128."""
    flat = tensor.reshape(-1)
    if tensor.element_size() == 16:
        return torch.view_as_real(flat).view(torch.int64)
    return flat.view(_INTEGERS[tensor.element_size()])


def values_of(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what `bits_of` made into integers, as values again, shape (n,)."""
    return torch.view_as_complex(bits.view(torch.float64)) if dtype == torch.complex128 else bits.view(dtype)


def differing(now: Tensor, base: Tensor) -> Iterator[Differing]:
    """Yield the entries in which two tensors differ, part by part; parts without any are left out.

    Args:
        now: Bits, shape (n,) or (n, 2).
        base: Bits of the same shape and dtype, on the same device.

    Cost: reads both tensors once; three temporaries of the size of a part.
    """
    library = kernel_for(now, base) if now.dim() == 1 else None
    if library is None:
        on_cpu = now.device.type == "cpu" and now.dim() == 1
        step = _CPU_CHUNK if on_cpu else 1 << 26
        for start in range(0, len(now), step):
            part, before = now[start : start + step], base[start : start + step]
            found = (_in_numpy if on_cpu else _in_torch)(part, before)
            if len(found.index):
                yield Differing(found.index + start, found.new, found.old)
        return
    size = now.element_size()
    collect = getattr(library, f"frostline_collect_{size}")
    room = min(CHUNK, len(now))
    index, new, old = torch.empty(room, dtype=torch.int64), now.new_empty(room), now.new_empty(room)
    into = index.data_ptr(), new.data_ptr(), old.data_ptr()
    for start in range(0, len(now), CHUNK):
        addresses = now.data_ptr() + start * size, base.data_ptr() + start * size
        k = collect(*addresses, min(CHUNK, len(now) - start), start, *into)
        if k:
            yield Differing(index[:k].clone(), new[:k].clone(), old[:k].clone())


def _in_torch(now: Tensor, base: Tensor) -> Differing:
    differs = now != base
    index = (differs if differs.dim() == 1 else differs.any(1)).nonzero().squeeze(1)
    return Differing(index, now[index], base[index])


def _in_numpy(now: Tensor, base: Tensor) -> Differing:
    """Do what `_in_torch` does: words of 8 bytes first, then the entries of those that differ.

    numpy finds and gathers few of many in a fifth of the time that torch takes.
    """
    new, old = now.numpy(), base.numpy()
    width = 8 // new.itemsize
    whole = len(new) // width * width
    words, words_old = new[:whole].view(np.int64), old[:whole].view(np.int64)
    found = np.flatnonzero(words != words_old)
    some, some_old = words[found].view(new.dtype), words_old[found].view(new.dtype)
    inside = np.flatnonzero(some != some_old)
    index = found[inside // width] * width + inside % width
    rest = whole + np.flatnonzero(new[whole:] != old[whole:])  # of a last word that is not whole
    parts = (index, rest), (some[inside], new[rest]), (some_old[inside], old[rest])
    return Differing(*(torch.from_numpy(np.concatenate(part)) for part in parts))
