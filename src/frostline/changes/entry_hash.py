"""A hash of the bits of a tensor that is a sum over its entries, so that parts can be added and changes exchanged.

Letters used for shapes in this file:
    n  entries of the tensor      k  entries of which indices are given

Each entry gives two numbers of 64 bits, made of its flat index and its bits; a tensor's hash is their two sums, modulo
2^64. So processes hash what each of them holds and add the sums; and when k entries change, the hash changes by what
they give now less what they gave before: a digest after a step costs what changed, not what there is.

It is not cryptographic. That two states which differ by accident, by a bug or by a damaged disk have the same 128 bits
is as good as impossible; somebody who wants to can construct such states. For that, compare SHA-256 of files.

    z = index * 0x9E3779B97F4A7C15 + bits     modulo 2^64; bits without sign
    z = (z ^ z >> 32) * 0xD6E8FEB86659FD93    first sum:  z ^ z >> 29
    z = (z ^ z >> 32) * 0xFF51AFD7ED558CCD    second sum: z ^ z >> 29
complex128 counts as twice as many float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from frostline.changes.compiled import kernel_for

_CHUNK = 1 << 16  # entries hashed at a time in plain torch: its temporaries stay in a cache
_MASK = 2**64 - 1


def _signed(constant: int) -> int:
    """Return an unsigned number of 64 bits as torch's int64 holds it."""
    return constant - 2**64 if constant >= 2**63 else constant


_STEP, _FIRST, _SECOND = map(_signed, (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD))

Sums = tuple[int, int]


def added(a: Sums, b: Sums) -> Sums:
    """Return the hash of what two hashes are of together."""
    return (a[0] + b[0]) & _MASK, (a[1] + b[1]) & _MASK


def exchanged(whole: Sums, index: Tensor, old: Tensor, new: Tensor) -> Sums:
    """Return the hash after the entries at `index` (k,) had bits `old` and now have `new`."""
    before, after = hash_at(index, old), hash_at(index, new)
    return (whole[0] + after[0] - before[0]) & _MASK, (whole[1] + after[1] - before[1]) & _MASK


def hash_range(bits: Tensor, start: int = 0) -> Sums:
    """Return the hash of entries that follow each other.

    Args:
        bits: As `bits_of` returns them, (n,) or (n, 2).
        start: The flat index of the first of them in the whole tensor.

    Cost: reads the entries once.
    """
    if bits.dim() == 2:
        bits, start = bits.reshape(-1), 2 * start
    if (library := kernel_for(bits)) is not None:
        sums = torch.zeros(2, dtype=torch.int64)
        call = getattr(library, f"frostline_hash_{bits.element_size()}")
        call(bits.data_ptr(), len(bits), start, sums.data_ptr())
        return _sums(sums)
    total = (0, 0)
    for first in range(0, len(bits), _CHUNK):
        part = bits[first : first + _CHUNK]
        index = torch.arange(start + first, start + first + len(part), device=bits.device)
        total = added(total, _in_torch(index, part))
    return total


def hash_at(index: Tensor, bits: Tensor) -> Sums:
    """Return the hash of the entries with these flat indices, int64 (k,), and bits, (k,) or (k, 2)."""
    if bits.dim() == 2:
        index, bits = (2 * index.unsqueeze(1) + torch.arange(2, device=index.device)).view(-1), bits.reshape(-1)
    if (library := kernel_for(bits, index)) is not None:
        sums = torch.zeros(2, dtype=torch.int64)
        call = getattr(library, f"frostline_hash_at_{bits.element_size()}")
        call(index.data_ptr(), bits.data_ptr(), len(bits), sums.data_ptr())
        return _sums(sums)
    total = (0, 0)
    for first in range(0, len(bits), _CHUNK):
        total = added(total, _in_torch(index[first : first + _CHUNK], bits[first : first + _CHUNK]))
    return total


def _in_torch(index: Tensor, bits: Tensor) -> Sums:
    unsigned = bits.to(torch.int64)
    if bits.element_size() < 8:
        unsigned &= (1 << 8 * bits.element_size()) - 1
    z = index * _STEP + unsigned
    sums = []
    for factor in (_FIRST, _SECOND):
        z = (z ^ _shifted(z, 32)) * factor
        sums.append((z ^ _shifted(z, 29)).sum())
    return _sums(torch.stack(sums))


def _shifted(z: Tensor, count: int) -> Tensor:
    """Return `z` shifted right as if it had no sign."""
    return (z >> count) & ((1 << (64 - count)) - 1)


def _sums(sums: Tensor) -> Sums:
    first, second = sums.tolist()
    return first & _MASK, second & _MASK
