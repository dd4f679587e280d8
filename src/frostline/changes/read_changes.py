"""What a file of changes says, as flat indices and bits, and whether it fits a state.

Letters used for shapes in this file:
    k  entries that changed
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from frostline.changes.one_pass import bits_of
from frostline.changes.state import State, StateTensor
from frostline.errors import CheckpointError, LearnedFileError
from frostline.partial import learned_format
from frostline.partial.learned_format import Saved, Step


@dataclass(frozen=True, eq=False)
class Change:
    """What a file says of one tensor, or of a part of it.

    Attributes:
        name: The tensor's first name.
        saved: As it stands in the file.
        index: Flat indices in the whole tensor, int64, shape (k,).
        bits: The bits to be written there, shape (k,) or (k, 2).
    """

    name: str
    saved: Saved
    index: Tensor
    bits: Tensor

    def check(self, path: Path, state: State) -> StateTensor:
        """Return the tensor of `state` that this belongs to; raise CheckpointError if there is none."""
        tensor = state.get(self.name)
        dtype = "" if tensor is None else str(tensor.dtype).removeprefix("torch.")
        if tensor is None or (tensor.shape, dtype) != (self.saved.shape, self.saved.dtype):
            has = "missing" if tensor is None else f"{dtype} {list(tensor.shape)}"
            raise CheckpointError(
                f"{path}: {self.name}: {self.saved.dtype} {list(self.saved.shape)} there, here {has}."
            )
        return tensor


def read_changes(path: Path) -> tuple[list[Change], Step]:
    """Read a file of changes, and its parts.

    Raises:
        LearnedFileError: It is damaged, incomplete, or something else.
        FileNotFoundError: There is no such file.
    """
    saved, step = learned_format.read_changes(path)
    changes = []
    for name, item in saved:
        if item.kind not in ("changed", "everything") or learned_format.dtype_name(item.values) != item.dtype:
            raise LearnedFileError(f"{path}: {name}: {item.kind} of {item.dtype} in a file of changes. Save it again.")
        index = torch.arange(item.values.numel()) if item.flat is None else item.flat
        changes.append(Change(name, item, index, bits_of(item.values.contiguous())))
    return changes, step


def check_base(path: Path, argument: str, digest: str, step: Step) -> None:
    """Raise CheckpointError unless `digest` is that of the state that a file builds on."""
    if digest == step.before:
        return
    if digest == step.after:
        raise CheckpointError(
            f"{path}: {argument} is in the state that it leads to ({digest}). Go on with the next file."
        )
    raise CheckpointError(
        f"{path}: builds on the state {step.before}, but {argument} is {digest}: another model, or a file before this "
        "one is missing. Apply the files in the order in which they were saved."
    )


def check_result(path: Path, digest: str, step: Step) -> None:
    """Raise LearnedFileError unless `digest`, of what would come out, is the one that a file leads to."""
    if digest != step.after:
        raise LearnedFileError(f"{path}: leads to {digest}, but says {step.after}. Save it again.")
