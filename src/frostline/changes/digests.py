"""One line that identifies the values of a state, bit for bit: of a live model, or of a checkpoint.

The digest of a tensor is made of its dtype, its shape and the hash of its entries (entry_hash.py); that of a state, of
the names and digests of its tensors, sorted by name. So it does not depend on the order in a file, on how a file or a
model is cut into shards, or on how many processes there are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Literal, overload

import torch
from torch import nn

from frostline.changes.checkpoints import read_checkpoint
from frostline.changes.entry_hash import Sums, added, hash_at, hash_range
from frostline.changes.processes import Processes
from frostline.changes.state import State, StateTensor, live_state

_CHUNK = 1 << 22


@overload
def digest(model: nn.Module | str | os.PathLike[str], *, per_tensor: Literal[False] = False) -> str: ...
@overload
def digest(model: nn.Module | str | os.PathLike[str], *, per_tensor: Literal[True]) -> dict[str, str]: ...
def digest(model: nn.Module | str | os.PathLike[str], *, per_tensor: bool = False) -> str | dict[str, str]:
    """Return one line that identifies the values of a model, or of its file, bit for bit.

    It covers what `state_dict()` has: for each tensor its name, dtype, shape and bytes. Tied tensors, one memory under
    several names, count once, under their first name, which is what `save_pretrained` keeps; equal copies count twice.
    It is the same for a model, partial or not, for its checkpoint, and on any number of processes.

    Args:
        model: A module; if it is sharded, every process must call this. Or the path of a checkpoint: a safetensors file,
            a file of `torch.save`, a folder of Hugging Face or of `torch.distributed.checkpoint`.
        per_tensor: Return a digest for each tensor instead.

    Returns:
        32 hexadecimal digits: equal for equal values. Or first name of each tensor -> the digest of its dtype, shape
        and bytes, which does not depend on the name.

        The hash is not cryptographic: different by any accident, but not safe from somebody who wants two models with
        one digest. Where that matters, compare the SHA-256 of the files.

    Raises:
        CheckpointError: The file is no checkpoint, or a tensor has no bits to compare (sparse, on the meta device).

    Cost: reads all values once; 128 bits for each tensor are sent between processes.

    Example:
        >>> import frostline as fl
        >>> model, copy = nn.Linear(3, 2), nn.Linear(3, 2)
        >>> _ = copy.load_state_dict(model.state_dict())
        >>> fl.digest(model) == fl.digest(copy)
        True
        >>> with torch.no_grad():
        ...     _ = copy.bias[0].neg_()
        >>> before, after = fl.digest(model, per_tensor=True), fl.digest(copy, per_tensor=True)
        >>> [name for name in before if before[name] != after[name]]
        ['bias']
    """
    if isinstance(model, nn.Module):
        state, processes = live_state(model), Processes(model)
    else:
        state, processes = read_checkpoint(model), Processes()
    sums = state_sums(state, processes)
    return tensor_digests(state, sums) if per_tensor else state_digest(state, sums)


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
    values = tensor.read()
    bits, first = tensor.bits(), tensor.first_index()
    total = (0, 0)
    for start in range(0, len(bits), _CHUNK):
        part = bits[start : start + _CHUNK]
        if first is not None:
            total = added(total, hash_range(part, first + start))
        else:
            index = torch.arange(start, start + len(part), device=bits.device)
            total = added(total, hash_at(tensor.global_index(index), part))
    tensor.release(values)
    return total
