"""The state of a path: a checkpoint, or a checkpoint with a file of learned values or of changes laid over it.

`base.safetensors+new_tokens.safetensors` is the state of `base.safetensors` into which `load_learned`, or
`apply_changes`, has loaded the other. Nothing is written; each tensor is put together when it is read.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from frostline.changes.checkpoints import is_learned_file, read_checkpoint
from frostline.changes.one_pass import bits_of
from frostline.changes.processes import Processes
from frostline.changes.read_changes import Change, check_base, read_changes
from frostline.changes.state import State, StateTensor
from frostline.changes.state_hash import state_digest, state_sums
from frostline.errors import CheckpointError
from frostline.partial import learned_format
from frostline.partial.learned_file import fingerprint
from frostline.partial.learned_format import Saved


def read_state(path: str | os.PathLike[str], base: State | None = None) -> State:
    """Return the state of a checkpoint, or of BASE+FILE; of a FILE alone over `base`, if that is given.

    Raises:
        CheckpointError: A file is damaged or no checkpoint, or does not fit its base.
        LearnedFileError: The file laid over it is damaged.

    Warns:
        UserWarning: A file of learned values is laid over another base than that on which they were learned.
    """
    text = os.fspath(path)
    if Path(text).exists() or "+" not in text:
        if base is not None and Path(text).is_file() and is_learned_file(Path(text)):
            return _overlaid(base, Path(text))
        return read_checkpoint(text)
    under, _, over = text.rpartition("+")
    return _overlaid(read_state(under), Path(over))


def _overlaid(base: State, path: Path) -> State:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Check the path.")
    if not is_learned_file(path):
        raise CheckpointError(f"{path}: not a file of learned values or changes, so it cannot be laid over another.")
    result = dict(base)
    if learned_format.is_changes(path):
        changes, step = read_changes(path)
        check_base(path, "its base", state_digest(base, state_sums(base, Processes())), step)
        for change in changes:
            result[change.name] = _with_change(change.check(path, base), result[change.name], change)
        return result
    by_name = {name: tensor for tensor in base.values() for name in tensor.names}
    for name, saved in learned_format.read(path).items():
        names = [each for each in (name, *saved.tied) if each in by_name]
        if not names:
            raise CheckpointError(f"{path}: {name} is not in its base. Name the base on which it was learned.")
        for tensor in {by_name[each].name: by_name[each] for each in names}.values():
            _check(path, tensor, saved)
            result[tensor.name] = _with_learned(tensor, saved)
    return result


def _check(path: Path, tensor: StateTensor, saved: Saved) -> None:
    if tensor.shape != saved.shape:
        raise CheckpointError(f"{path}: {tensor.name}: shape {saved.shape} there, {tensor.shape} in its base.")
    if saved.indices is not None and saved.base is not None:
        values = tensor.read()
        if fingerprint(values, saved.indices) != saved.base:
            warnings.warn(
                f"{path}: {tensor.name} was learned on another base: what did not learn differs.", stacklevel=4
            )
        tensor.release(values)


def _with_learned(tensor: StateTensor, saved: Saved) -> StateTensor:
    def read() -> Tensor:
        full = tensor.read().clone()
        if saved.indices is None:
            return full.copy_(saved.values)
        saved.indices.scatter_(full, saved.values)
        return full

    return replace(tensor, read=read)


def _with_change(tensor: StateTensor, under: StateTensor, change: Change) -> StateTensor:
    def read() -> Tensor:
        full = under.read().contiguous().clone()
        bits_of(full)[change.index] = change.bits
        return full

    return replace(tensor, read=read)
