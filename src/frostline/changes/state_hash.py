"""The hash of each tensor of a state, and the digest of them all, on any number of processes.

The digest of a tensor is made of its dtype, its shape and the hash of its entries (entry_hash.py); that of a state, of
the names and digests of its tensors, sorted by name. So it does not depend on the order in a file, on how a file or a
model is cut into shards, or on how many processes there are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping

import torch

from frostline.changes.entry_hash import Sums, added, hash_at, hash_range
from frostline.changes.processes import Processes
from frostline.changes.state import State, StateTensor

_CHUNK = 1 << 22


def state_sums(
    state: State, processes: Processes, progress: Callable[[int], None] = lambda nbytes: None
) -> dict[str, Sums]:
    """Return the hash of each tensor of a state. If a model is sharded, every process must call this.

    Args:
        state: The state.
        processes: Those over which the model is sharded.
        progress: Is told the bytes of each tensor when it is done.
    """
    mine = {}
    for name, tensor in state.items():
        mine[name] = (_part(tensor), _hash(tensor))
        progress(tensor.nbytes)
    parts: dict[str, dict[object, Sums]] = {}
    for theirs in processes.gathered(mine):
        for name, (part, sums) in theirs.items():
            parts.setdefault(name, {}).setdefault(part, sums)  # of replicas, the first counts
    total: dict[str, Sums] = {}
    for name, of_parts in parts.items():
        for sums in of_parts.values():
            total[name] = added(total.get(name, (0, 0)), sums)
    return total


def owned(state: State, processes: Processes) -> set[str]:
    """Return the names of the tensors of which this process writes what it holds: each part is written by one."""
    if not processes.are_several:
        return set(state) if processes.is_first else set()
    first: dict[tuple[str, object], int] = {}
    for number, parts in enumerate(processes.gathered({name: _part(tensor) for name, tensor in state.items()})):
        for name, part in parts.items():
            first.setdefault((name, part), number)
    return {name for name, tensor in state.items() if first[name, _part(tensor)] == processes.number}


def tensor_digests(state: State, sums: Mapping[str, Sums]) -> dict[str, str]:
    """Return the digest of each tensor, of its dtype, shape and hash."""
    return {name: _tensor_digest(tensor, sums[name]) for name, tensor in state.items()}


def state_digest(state: State, sums: Mapping[str, Sums]) -> str:
    """Return the digest of a state."""
    return _short(sorted(tensor_digests(state, sums).items()))


def _tensor_digest(tensor: StateTensor, sums: Sums) -> str:
    return _short([str(tensor.dtype).removeprefix("torch."), list(tensor.shape), *sums])


def _short(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


def _part(tensor: StateTensor) -> tuple[tuple[int, int], ...] | None:
    return None if tensor.held is None else tuple((span.start, span.stop) for span in tensor.held)


def _hash(tensor: StateTensor) -> Sums:
    bits, first = tensor.bits(), tensor.first_index()
    total = (0, 0)
    for start in range(0, len(bits), _CHUNK):
        part = bits[start : start + _CHUNK]
        if first is not None:
            total = added(total, hash_range(part, first + start))
        else:
            index = torch.arange(start, start + len(part), device=bits.device)
            total = added(total, hash_at(tensor.global_index(index), part))
        tensor.release(part)
    return total
