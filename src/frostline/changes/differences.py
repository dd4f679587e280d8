"""What differs between two states, bit for bit: tensors, rows and entries, names, dtypes, shapes and ties.

Letters used for shapes in this file:
    V  rows of a tensor, its dimension 0 (a tensor without dimensions is one row)
    k  entries that differ in one part of it

Tensors are read part by part, so that files may be larger than memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from frostline.changes.one_pass import differing, values_of
from frostline.changes.overlay import read_state
from frostline.changes.state import State, StateTensor, live_state

_CHUNK = 1 << 17  # entries compared at a time: what stays in a cache
_RELEASED = 1 << 24  # bytes of a mapped tensor that are held before they are given back
_DENSE = 1 / 32  # of the entries: from here on all are looked at, below only those that differ


@dataclass(frozen=True)
class TensorDifference:
    """What differs in one tensor.

    Attributes:
        entries: How many entries have a different bit.
        rows: In how many rows.
        numel: How many entries it has.
        num_rows: How many rows it has, V.
        largest: The largest difference between two values; NaN if only one of two is NaN.
        row_ids: The rows that differ, ascending, if they were asked for.
        names: Its names in the first state, then in the second.
    """

    entries: int
    rows: int
    numel: int
    num_rows: int
    largest: float
    row_ids: tuple[int, ...] = ()
    names: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, in which NaN is None and infinity the largest number there is."""
        largest = None if math.isnan(self.largest) else min(self.largest, 1.7976931348623157e308)
        counts = {"entries": self.entries, "rows": self.rows, "numel": self.numel, "num_rows": self.num_rows}
        return counts | {"largest": largest} | ({"row_ids": list(self.row_ids)} if self.row_ids else {})


@dataclass(frozen=True)
class Difference:
    """What differs between two states, A and B.

    Attributes:
        tensors: Name of each tensor that both have, in one shape and dtype -> what differs in it.
        only_in_a: Names that only A has.
        only_in_b: Names that only B has.
        retyped: Name of each tensor whose shape or dtype differs -> both, in words.
        ties: Pairs of names that are one tensor in A or in B, and two in the other, in words.
    """

    tensors: dict[str, TensorDifference] = field(default_factory=dict)
    only_in_a: list[str] = field(default_factory=list)
    only_in_b: list[str] = field(default_factory=list)
    retyped: dict[str, tuple[str, str]] = field(default_factory=dict)
    ties: list[str] = field(default_factory=list)

    @property
    def changed(self) -> list[str]:
        """Names of everything that differs in any way, but for ties."""
        moved = [name for name, tensor in self.tensors.items() if tensor.entries]
        return [*moved, *self.retyped, *self.only_in_a, *self.only_in_b]

    @property
    def is_same(self) -> bool:
        """Whether nothing differs."""
        return not self.changed and not self.ties

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "same": self.is_same,
            "tensors": {name: tensor.to_dict() for name, tensor in self.tensors.items()},
            "only_in_a": self.only_in_a,
            "only_in_b": self.only_in_b,
            "retyped": {name: list(both) for name, both in self.retyped.items()},
            "ties": self.ties,
        }


def diff(
    a: nn.Module | str | os.PathLike[str],
    b: nn.Module | str | os.PathLike[str],
    *,
    rows: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Difference:
    """Compare two states bit by bit: -0.0 differs from 0.0, and a NaN is equal to the same NaN.

    Args:
        a: A module that is not sharded, or the path of a checkpoint, as `fl.digest` takes it; BASE+FILE lays a file of
            `save_learned` or `Changes.save` over a checkpoint.
        b: Likewise. A file of `save_learned` or `Changes.save` alone is laid over `a`.
        rows: Also list which rows differ.
        progress: Is told how many bytes of how many were compared.

    Raises:
        CheckpointError: A path is no checkpoint, or a model has no bits to compare.

    Cost: reads both once; memory for some megabytes, or for one tensor where it must be put together (shards of
        torch.distributed.checkpoint, BASE+FILE).

    Example:
        >>> one, other = nn.Linear(3, 2), nn.Linear(3, 2)
        >>> _ = other.load_state_dict(one.state_dict())
        >>> with torch.no_grad():
        ...     _ = other.weight[1].fill_(9.0)
        >>> diff(one, other).tensors["weight"].entries
        3
    """
    state_a = live_state(a) if isinstance(a, nn.Module) else read_state(a)
    state_b = live_state(b) if isinstance(b, nn.Module) else read_state(b, base=state_a)
    return compare(state_a, state_b, rows, progress)


def compare(
    a: State, b: State, rows: bool = False, progress: Callable[[int, int], None] = lambda done, total: None
) -> Difference:
    """Compare two states; see `diff`."""
    in_a = {name: tensor for tensor in a.values() for name in tensor.names}
    in_b = {name: tensor for tensor in b.values() for name in tensor.names}
    pairs: dict[tuple[int, int], str] = {}
    for name in (name for name in in_a if name in in_b):
        pairs.setdefault((id(in_a[name]), id(in_b[name])), name)
    result = Difference(ties=_ties(in_a, in_b))
    total, done = sum(in_a[name].nbytes for name in pairs.values()), 0
    for name in pairs.values():
        one, other = in_a[name], in_b[name]
        if (one.shape, one.dtype) == (other.shape, other.dtype):
            result.tensors[name] = _compared(one, other, rows, lambda n, before=done: progress(before + n, total))  # type: ignore[misc]
        else:
            result.retyped[name] = _described(one), _described(other)
        done += one.nbytes
    paired = {identity for pair in pairs for identity in pair}
    result.only_in_a.extend(tensor.name for tensor in a.values() if id(tensor) not in paired)
    result.only_in_b.extend(tensor.name for tensor in b.values() if id(tensor) not in paired)
    return result


def _described(tensor: StateTensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _ties(in_a: dict[str, StateTensor], in_b: dict[str, StateTensor]) -> list[str]:
    """Return in words which names both have that are tied in one of them alone."""
    found = []
    for here, there, which in ((in_a, in_b, "A"), (in_b, in_a, "B")):
        for tensor in {id(tensor): tensor for tensor in here.values()}.values():
            shared = [name for name in tensor.names if name in there]
            found += [
                f"{shared[0]} and {name} are tied only in {which}"
                for name in shared[1:]
                if there[name] is not there[shared[0]]
            ]
    return found


def _compared(one: StateTensor, other: StateTensor, rows: bool, progress: Callable[[int], None]) -> TensorDifference:
    values, values_other = one.read(), other.read()
    bits, bits_other = one.bits(), other.bits()
    entries, num_rows, largest, last_row, dense = 0, 0, 0.0, -1, False
    row_ids: list[int] = []
    size, held = one.dtype.itemsize, 0
    for start, stop in _parts(one.numel, one.row_size):
        now, before = bits[start:stop].cpu(), bits_other[start:stop].cpu()
        found = _dense if dense else _sparse
        count, its_rows, distance = found(now, before, one.dtype, start, one.row_size)
        dense = count > _DENSE * (stop - start)
        if count:
            entries += count
            largest = distance if math.isnan(distance) or distance > largest else largest
            num_rows += len(its_rows) - (int(its_rows[0]) == last_row)
            if rows:
                row_ids += its_rows[int(its_rows[0]) == last_row :].tolist()
            last_row = int(its_rows[-1])
        if (stop - held) * size >= _RELEASED or stop == one.numel:
            for tensor, read in ((one, values), (other, values_other)):
                if read.is_contiguous():
                    tensor.release(read.reshape(-1)[held:stop])
            held = stop
            progress(stop * size)
    v = one.shape[0] if one.shape else 1
    return TensorDifference(entries, num_rows, one.numel, v, largest, tuple(row_ids), (one.names, other.names))


def _parts(numel: int, row_size: int) -> Iterator[tuple[int, int]]:
    """Yield where parts begin and end: each is some rows, or lies inside one."""
    if row_size <= _CHUNK:
        step = max(1, _CHUNK // max(1, row_size)) * row_size
        yield from ((start, min(start + step, numel)) for start in range(0, numel, max(1, step)))
        return
    for row in range(0, numel, row_size):
        yield from ((start, min(start + _CHUNK, row + row_size)) for start in range(row, row + row_size, _CHUNK))


def _sparse(
    now: Tensor, before: Tensor, dtype: torch.dtype, start: int, row_size: int
) -> tuple[int, np.ndarray[Any, Any], float]:
    """Return how many entries differ, in which rows, and the largest distance, from those that differ alone."""
    for part in differing(now, before):  # one: it is smaller than theirs
        rows = np.unique((part.index.numpy() + start) // row_size)
        distance = _distance(values_of(part.new, dtype), values_of(part.old, dtype))
        return len(part.index), rows, float(distance.max())
    return 0, np.empty(0, np.int64), 0.0


def _dense(
    now: Tensor, before: Tensor, dtype: torch.dtype, start: int, row_size: int
) -> tuple[int, np.ndarray[Any, Any], float]:
    """Do the same where most entries differ."""
    differs = now != before if now.dim() == 1 else (now != before).any(1)
    mask = differs.numpy()
    count = int(np.count_nonzero(mask))
    by_row = mask.reshape(-1, row_size).any(1) if len(mask) % row_size == 0 else mask.any(keepdims=True)
    distance = _distance(values_of(now, dtype), values_of(before, dtype))
    largest = float(distance.max())
    if math.isnan(largest):  # perhaps of NaN or infinities that are the same in both
        largest = float(distance[differs].max()) if count else 0.0
    return count, np.flatnonzero(by_row) + start // row_size, largest


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the distances between values, in a dtype in which they are exact to its last digits."""
    narrow = a.is_floating_point() and a.dtype.itemsize <= 4
    wide = torch.complex128 if a.is_complex() else torch.float32 if narrow else torch.float64
    return (a.to(wide) - b.to(wide)).abs()
