"""The file of a Recorder: one safetensors file in the run folder, replaced atomically and validated when read.

    NAME         the values at P steps: (P,) of a scalar, (P, *) of a tensor, (P, R, *) of rows
    NAME:steps   the steps, int64, shape (P,), ascending

Letters used for shapes in this file:
    P  points of a trajectory         R  rows that are recorded
    *  the rest of a shape

The metadata holds `format`, and in `trajectories` (JSON) for each name its `kind` (scalar, tensor or rows), the `words`
of its rows and the `stride` of its points.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from frostline.errors import RunFolderError
from frostline.files import replacing

FILE, FORMAT = "record.safetensors", "frostline-record-1"
STEPS = ":steps"
Kind = Literal["scalar", "tensor", "rows"]


@dataclass(frozen=True)
class Recorded:
    """A trajectory: the values under one name over training.

    Attributes:
        kind: "scalar" (a number at each step), "tensor", or "rows" (some rows of a table).
        steps: The steps of its P points, ascending.
        values: The values, shape (P, *): (P,) for a scalar, float64; (P, R, *) for rows.
        words: A word for each of the R rows; None unless `kind` is "rows".
        stride: The smallest distance in steps between two points (the last point may be closer).
    """

    kind: Kind
    steps: list[int]
    values: Tensor
    words: list[str] | None = None
    stride: int = 1


def write_record(run_folder: Path, record: Mapping[str, Recorded]) -> None:
    """Write the record of a run folder, replacing an existing one; RunFolderError if that fails."""
    tensors: dict[str, Tensor] = {}
    about: dict[str, dict[str, Any]] = {}
    for name, trajectory in record.items():
        tensors[name] = trajectory.values.contiguous()
        tensors[name + STEPS] = torch.tensor(trajectory.steps, dtype=torch.int64)
        about[name] = {"kind": trajectory.kind, "words": trajectory.words, "stride": trajectory.stride}
    path = run_folder / FILE
    try:
        with replacing(path) as unfinished:
            save_file(tensors, unfinished, {"format": FORMAT, "trajectories": json.dumps(about)})
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"{path}: cannot be written: {error}. Make room, or name another folder.") from None


def read_record(run_folder: str | os.PathLike[str]) -> dict[str, Recorded]:
    """Read what a `Recorder` wrote.

    Args:
        run_folder: The folder that the Recorder was given.

    Returns:
        Name -> trajectory, of at least one point each, in the order in which the names were first recorded.

    Raises:
        RunFolderError: The folder has no record, or it is damaged.

    Cost: reads the whole file; at most 32 MB for each name.

    Example:
        >>> import frostline as fl, tempfile
        >>> run_folder = tempfile.mkdtemp()
        >>> with fl.Recorder(run_folder) as recorder:
        ...     for step in range(3):
        ...         recorder(loss=1 / (1 + step))
        >>> loss = read_record(run_folder)["loss"]
        >>> loss.steps, loss.values[:2].tolist()
        ([0, 1, 2], [1.0, 0.5])
    """
    path = Path(run_folder) / FILE
    if not path.is_file():
        raise RunFolderError(f"{path}: no such file. Name a folder that fl.Recorder wrote to.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
            about = json.loads(metadata["trajectories"])
            return {
                name: _recorded(name, described, file.get_tensor(name + STEPS), file.get_tensor(name))
                for name, described in about.items()
            }
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise RunFolderError(f"{path}: damaged: {reason}. Delete it, or copy it again.") from None


def _recorded(name: str, described: dict[str, Any], steps: Tensor, values: Tensor) -> Recorded:
    kind, words, stride = described["kind"], described["words"], described["stride"]
    if kind not in ("scalar", "tensor", "rows") or type(stride) is not int or stride < 1:
        raise ValueError(f"{name!r} has an invalid kind or stride")
    if steps.dtype != torch.int64 or steps.ndim != 1 or not len(steps) or bool((steps.diff() <= 0).any()):
        raise ValueError(f"the steps of {name!r} do not ascend")
    if values.ndim == 0 or len(values) != len(steps) or (kind == "scalar") != (values.ndim == 1):
        raise ValueError(f"{name!r} has {len(steps)} steps and values of shape {tuple(values.shape)}")
    if (words is None) == (kind == "rows"):
        raise ValueError(f"{name!r} has words without rows, or rows without words")
    if words is not None and not (
        isinstance(words, list) and len(words) == values.shape[1] and all(isinstance(word, str) for word in words)
    ):
        raise ValueError(f"{name!r} does not have one word for each row")
    return Recorded(kind, steps.tolist(), values, words, stride)
