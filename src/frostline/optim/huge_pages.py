"""Put large tables into huge pages on Linux: access to scattered rows then causes half as many cache misses.

With pages of 4 KB, each row of a table of gigabytes is in a page whose address the CPU first looks up in memory; with
pages of 2 MB, these addresses mostly stay in its caches. Neither values nor addresses change. Nothing here can fail: if
the system declines, pages stay as they are. `/sys/kernel/mm/transparent_hugepage/enabled` set to `never` is respected,
and memory that is shared or mapped from a file is left alone, since other processes use it too.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # see madvise(2)
_PAGE = 4096
_MIN_BYTES = 64 * 2**20  # smaller tables stay in ordinary pages


def full(shape: Sequence[int], value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor filled with `value`, in huge pages if it is large.

    Cost: that of `torch.full`.
    """
    tensor = torch.empty(shape, dtype=dtype, device=device)
    if _worth_it(tensor):
        _advise(tensor, _MADV_HUGEPAGE)  # before the first write, which allocates the pages
    return tensor.fill_(value)


def collapse(table: Tensor) -> None:
    """Move the memory of a large table into huge pages, as far as there are free ones.

    Cost: if it was in ordinary pages, the kernel copies it once: a second for 2.5 GB.
    """
    if _worth_it(table) and _is_ours(table):
        _advise(table, _MADV_HUGEPAGE)
        _advise(table, _MADV_COLLAPSE)


def _worth_it(tensor: Tensor) -> bool:
    supported = tensor.device.type == "cpu" and tensor.is_contiguous()
    return supported and tensor.numel() * tensor.element_size() >= _MIN_BYTES and _enabled()


@cache
def _enabled() -> bool:
    try:
        return sys.platform == "linux" and "[never]" not in _SETTING.read_text()
    except OSError:
        return False


def _is_ours(tensor: Tensor) -> bool:
    """Return whether the memory is private to this process: neither shared nor mapped from a file."""
    address = tensor.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        extent, permissions, _, _, inode, *_ = line.split(maxsplit=5)
        first, last = (int(end, 16) for end in extent.split("-"))
        if first <= address < last:
            return permissions.endswith("p") and inode == "0"  # p: private
    return False


def _advise(tensor: Tensor, advice: int) -> None:
    first = -(-tensor.data_ptr() // _PAGE) * _PAGE  # madvise takes whole pages: those entirely inside the tensor
    last = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // _PAGE * _PAGE
    ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), ctypes.c_int(advice))
