"""One line that identifies the values of a state, bit for bit: of a live model, or of a checkpoint."""

from __future__ import annotations

import os
from typing import Literal, overload

from torch import nn

from frostline.changes.overlay import read_state
from frostline.changes.processes import Processes
from frostline.changes.state import live_state
from frostline.changes.state_hash import state_digest, state_sums, tensor_digests


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
        model: A module; if it is sharded, every process must call this. Or the path of a checkpoint: a safetensors
            file, a file of `torch.save`, a folder of Hugging Face or of `torch.distributed.checkpoint`; BASE+FILE lays
            a file of `save_learned` or `Changes.save` over one.
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
        >>> import frostline as fl, torch
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
    elif isinstance(model, str | os.PathLike):
        state, processes = read_state(model), Processes()
    else:
        raise TypeError(f"model: expected an nn.Module or the path of a checkpoint, got {type(model).__name__}.")
    sums = state_sums(state, processes)
    return tensor_digests(state, sums) if per_tensor else state_digest(state, sums)
