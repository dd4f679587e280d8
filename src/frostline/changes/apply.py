"""Apply a file of changes to a model, or to a file: only to the state that it builds on, and whole or not at all.

Before anything is written, the state's digest is compared with the one that the file builds on, and the digest that
would come out with the one that it leads to. So another model, a missing link and a damaged file are found in time.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from frostline.changes.apply_to_files import apply_to_files
from frostline.changes.chain import sums_with
from frostline.changes.entry_hash import Sums, exchanged
from frostline.changes.one_pass import bits_of, values_of
from frostline.changes.processes import Processes
from frostline.changes.read_changes import Change, check_base, check_result, read_changes
from frostline.changes.state import State, StateTensor, live_state, unwrapped
from frostline.changes.state_hash import owned, state_digest, state_sums
from frostline.errors import CheckpointError, FileError
from frostline.partial import sharded
from frostline.partial.model_tensors import ModelTensor, find_tensors
from frostline.partial.sharded import is_sharded
from frostline.partial.tensor.memory import writable


def apply_changes(model: nn.Module | str | os.PathLike[str], path: str | os.PathLike[str]) -> str:
    """Apply a file that `Changes.save` wrote to a model in memory, or to a folder or file of safetensors.

    Args:
        model: A module, partial or not, on any number of processes: if it is sharded, every process must call this;
            under DistributedDataParallel, every replica. Values are written in place, so an optimizer of the model
            goes on with them; its own state stays. Or a path: a safetensors file, or a folder with one, or with shards
            and an index.
        path: The file; the others that it names lie beside it.

    Returns:
        The digest of the state now, which the file names.

    Raises:
        CheckpointError: The state is not the one that the file builds on: another model, or a file before this one is
            missing; or the model holds a tensor that cannot be written to.
        LearnedFileError: The file is damaged, incomplete, or no file of changes.
        FileNotFoundError: There is no such file.
            After any error, Ctrl-C included, nothing has changed.

    Cost: reads the state once, for its digest, and writes what changed. A file is copied; a shard in which nothing
        changed is not. On files, the old or the new state is whole whenever the process is killed.
    """
    path = Path(path)
    if not isinstance(model, nn.Module):
        return apply_to_files(Path(model), path)
    processes, error, read = Processes(model), None, None
    try:
        read = read_changes(path)
    except (FileError, FileNotFoundError) as problem:
        error = problem
    processes.raise_together(error)
    assert read is not None
    changes, step = read
    state = live_state(model)
    sums = state_sums(state, processes)
    check_base(path, "model", state_digest(state, sums), step)
    targets = {name: target for target in find_tensors(unwrapped(model)) for name in target.names}
    mine, error = owned(state, processes), None
    writes: list[_Write] = []
    differences: dict[str, Sums] = {}
    try:
        for change in changes:
            tensor = change.check(path, state)
            write = _planned(path, change, tensor, targets.get(tensor.name))
            writes.append(write)
            if tensor.name in mine or not processes.are_several:
                index = tensor.global_index(write.index)
                differences[tensor.name] = exchanged(differences.get(tensor.name, (0, 0)), index, write.old, write.new)
    except FileError as problem:
        error = problem
    processes.raise_together(error)
    check_result(path, state_digest(state, sums_with(sums, processes.gathered(differences))), step)
    _write_all(writes, state)
    return step.after


@dataclass(frozen=True, eq=False)
class _Write:
    """One write: new and old bits at flat indices of what this process holds of a tensor."""

    tensor: StateTensor
    target: ModelTensor | None
    index: Tensor
    new: Tensor
    old: Tensor


def _planned(path: Path, change: Change, tensor: StateTensor, target: ModelTensor | None) -> _Write:
    assert tensor.live is not None
    live = tensor.live
    if target is not None and target.mapped:
        raise CheckpointError(f"{path}: {tensor.name} is mapped and never written to. Apply it to the mapped file.")
    if torch._debug_has_internal_overlap(live) == 1:
        raise CheckpointError(f"{path}: {tensor.name}: elements of it share memory. Make it contiguous.")
    inside, index = tensor.local_index(change.index)
    new = change.bits[inside]
    index, new = index.to(live.device), new.to(live.device)
    return _Write(tensor, target, index, new, tensor.bits()[index])


@torch.no_grad()
def _write_all(writes: list[_Write], state: State) -> None:
    """Write, and bring what learns of partial tensors up to date; undo all if that is interrupted."""
    learned = [w.target.learned for w in writes if w.target is not None and w.target.learned is not None]
    before = [(part, part.detach().clone()) for part in learned]
    try:
        for write in writes:
            _put(write.tensor, write.target, write.index, write.new)
        for write in writes:
            target = write.target
            if target is None or target.memory is None or target.learned is None:
                continue
            if is_sharded(target.tensor):
                sharded.update(target.memory.indices, target.learned, target.tensor)
            else:
                target.memory.sync(target.tensor, target.learned)
    except BaseException:
        for part, values in before:
            part.copy_(values)
        for write in writes:
            _put(write.tensor, write.target, write.index, write.old)
        raise


def _put(tensor: StateTensor, target: ModelTensor | None, index: Tensor, bits: Tensor) -> None:
    assert tensor.live is not None
    live = tensor.live
    if target is not None and not is_sharded(target.tensor):
        live = writable(target.tensor).detach()
    values = values_of(bits, tensor.dtype)
    if live.is_contiguous() and bits.dim() == 1:
        bits_of(live)[index] = bits  # as integers: float8 has no indexed writes
    elif bits.dim() == 1:
        live.view(bits.dtype)[torch.unravel_index(index, live.shape)] = bits
    else:
        live[torch.unravel_index(index, live.shape)] = values
