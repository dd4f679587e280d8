"""Large tables in huge pages, where Linux has them: scattered rows then cost half as many misses.

In pages of 4 KB, each row of a table of gigabytes is in a page that the processor has to look up in memory first; in
pages of 2 MB, that mostly stays in its caches. Values do not change and addresses neither. Nothing here can fail: where
the system does not want to, pages stay as they are. `/sys/kernel/mm/transparent_hugepage/enabled` set to `never` is
respected; so is memory that is shared or mapped from a file, which belongs to others too.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_HUGEPAGE, _COLLAPSE = 14, 25  # advice of madvise(2)
_PAGE = 4096
_WORTH_IT = 64 * 2**20  # bytes: below, ordinary pages do


def full_like(table: Tensor, value: float, dtype: torch.dtype) -> Tensor:
    """Return a tensor of the shape of `table`, all `value`, in huge pages if it is large.

    Cost: that of `torch.full_like`.
    """
    made = torch.empty_like(table, dtype=dtype)
    if _worth_it(made):
        _advise(made, _HUGEPAGE)  # before the first write: pages are made by it
    return made.fill_(value)


def collect(table: Tensor) -> None:
    """Move the memory of a large table into huge pages, as far as they are free.

    Cost: where it was in ordinary pages, one copy of it inside the system: a second for 2.5 GB.
    """
    if _worth_it(table) and _is_ours(table):
        _advise(table, _HUGEPAGE)
        _advise(table, _COLLAPSE)


def _worth_it(tensor: Tensor) -> bool:
    ordinary = tensor.device.type == "cpu" and tensor.is_contiguous()
    return ordinary and tensor.numel() * tensor.element_size() >= _WORTH_IT and _wanted()


@cache
def _wanted() -> bool:
    try:
        return sys.platform == "linux" and "[never]" not in _SETTING.read_text()
    except OSError:
        return False


def _is_ours(tensor: Tensor) -> bool:
    """Whether the memory is this process's own: neither shared nor mapped from a file."""
    address = tensor.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        extent, rights, _, _, inode, *_ = line.split(maxsplit=5)
        first, last = (int(end, 16) for end in extent.split("-"))
        if first <= address < last:
            return rights.endswith("p") and inode == "0"
    return False


def _advise(tensor: Tensor, advice: int) -> None:
    first = -(-tensor.data_ptr() // _PAGE) * _PAGE
    last = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // _PAGE * _PAGE
    ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), ctypes.c_int(advice))
