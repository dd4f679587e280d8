"""Where in the memory of a contiguous tensor what learns lies, counted in elements.

Letters used for shapes in this file:
    R  places: rows that learn, of some width, or single entries, of width 1
    m  elements of a view

So rows and entries are one case here: R runs of `width` elements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


class Places:
    """The runs of elements that learn, in a contiguous tensor of some shape.

    Attributes:
        starts: The number of each run: it starts at `starts[i] * width`. int64, (R,), in the order of what learns.
        width: Elements in a run.
        shape: Shape of the tensor.
    """

    def __init__(self, starts: Tensor, shape: Sequence[int], indexed: int) -> None:
        self.starts, self.shape = starts, tuple(shape)
        self.width = math.prod(shape[indexed:])

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, Tensor, Tensor | None]:
        """The runs in the order of memory: on the host, on the device, and their slots if that is another order."""
        with torch.inference_mode(False):
            if bool((self.starts[1:] > self.starts[:-1]).all()):
                return self.starts.cpu().numpy(), self.starts, None
            starts, slots = self.starts.sort()
            return starts.cpu().numpy(), starts, slots

    @cached_property
    def rows_and_columns(self) -> tuple[Tensor, Tensor]:
        """For entries of a matrix (I, J): where each row starts among them, (I + 1,), and their columns: both int32."""
        rows, columns = self.shape
        with torch.inference_mode(False):
            starts = torch.arange(rows + 1, device=self.starts.device) * columns
            return torch.searchsorted(self.starts, starts).int(), (self.starts % columns).int()

    def within(self, offset: int, size: Sequence[int], stride: Sequence[int]) -> tuple[int, int]:
        """Return the first and the last run + 1, in the order of the memory, that a view may touch.

        All between its first and its last element count. Cost: two binary searches on the host.
        """
        if 0 in size:
            return 0, 0
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        starts = self._sorted[0]
        return int(starts.searchsorted(offset // self.width)), int(starts.searchsorted(last // self.width, "right"))

    def gather_from_view(
        self, values: Tensor, offset: int, size: Sequence[int], stride: Sequence[int]
    ) -> Tensor | None:
        """Return what `values`, the elements of a view, hold at the runs: (R, width), zero outside of the view.

        The view has this `size` and `stride`, starts at element `offset`, and no two of its elements are the same one.
        None if it touches no run. Cost: that of `values` and of (R, width).
        """
        first, last = self.within(offset, size, stride)
        if first == last:
            return None
        starts, slots = self._sorted[1:]
        block = _in_order_of_memory(values, size, stride)
        if block is None or offset % self.width or block.numel() % self.width:
            return self._gather_scattered(values, offset, size, stride)
        rows = block.view(-1, self.width)
        found = rows.index_select(0, starts[first:last] - offset // self.width) if last - first < len(rows) else rows
        if slots is None and last - first == len(starts):
            return found
        into = torch.arange(first, last, device=values.device) if slots is None else slots[first:last]
        return values.new_zeros(len(starts), self.width).index_copy(0, into, found)

    def _gather_scattered(self, values: Tensor, offset: int, size: Sequence[int], stride: Sequence[int]) -> Tensor:
        """Do the same for a view with gaps, such as a column, by the place of each of its elements."""
        starts, slots = self._sorted[1:]
        place = torch.full((), offset, device=values.device)
        for n, step in zip(size, stride, strict=True):
            place = place.unsqueeze(-1) + torch.arange(n, device=values.device) * step
        place = place.flatten()
        run = place // self.width
        slot = torch.searchsorted(starts, run).clamp_(max=len(starts) - 1)
        learns = starts[slot] == run
        into = (slot if slots is None else slots[slot]) * self.width + place % self.width
        found = values.new_zeros(len(starts) * self.width).index_copy(0, into[learns], values.reshape(-1)[learns])
        return found.view(-1, self.width)


def _in_order_of_memory(values: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor | None:
    """Return `values` (m,) in the order that the elements of a view have in memory; None if there are gaps between."""
    order = sorted(range(len(size)), key=lambda dim: (stride[dim], size[dim]), reverse=True)
    expected = 1
    for dim in reversed(order):
        if size[dim] > 1 and stride[dim] != expected:
            return None
        expected *= size[dim]
    return values.permute(order).reshape(-1)
