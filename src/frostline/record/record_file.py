"""What a Recorder writes: one safetensors file in the run folder, always whole, read without trust.

    NAME         the values at P steps, the shape of one look behind it: (P,), (P, *) or (P, R, *)
    NAME:steps   the steps, int64, shape (P,), ascending

Letters used for shapes in this file:
    P  points of a trajectory         R  rows that are looked at
    *  the rest of a shape

The metadata says `format`, and under `trajectories` for each name (JSON) its `kind` (scalar, tensor or rows), the
`words` of its rows and the `stride` of its points.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from frostline.errors import RunFolderError

FILE, FORMAT = "record.safetensors", "frostline-record-1"
STEPS = ":steps"
Kind = Literal["scalar", "tensor", "rows"]


@dataclass(frozen=True)
class Recorded:
    """One trajectory.

    Attributes:
        kind: "scalar" (a number a step), "tensor", or "rows" (some rows of a table).
        steps: The steps of its P points, ascending.
        values: The values, shape (P, *): (P,) for a scalar, float64; (P, R, *) for rows.
        words: A word for each of the R rows; None unless it is rows.
        stride: The least distance of two points in steps (but for the last point).
    """

    kind: Kind
    steps: list[int]
    values: Tensor
    words: list[str] | None = None
    stride: int = 1


def write_record(folder: Path, record: Mapping[str, Recorded]) -> None:
    """Write the record of a run folder in place of the one that is there; RunFolderError where the disk refuses."""
    tensors: dict[str, Tensor] = {}
    about: dict[str, dict[str, Any]] = {}
    for name, one in record.items():
        tensors[name] = one.values.contiguous()
        tensors[name + STEPS] = torch.tensor(one.steps, dtype=torch.int64)
        about[name] = {"kind": one.kind, "words": one.words, "stride": one.stride}
    path = folder / FILE
    temporary = path.with_name(f".{FILE}.{secrets.token_hex(4)}.tmp")
    try:
        save_file(tensors, temporary, {"format": FORMAT, "trajectories": json.dumps(about)})
        temporary.chmod(0o666 & ~_umask())  # safetensors lets only the owner read
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"{path}: cannot be written: {error}. Make room, or name another folder.") from None
    finally:
        temporary.unlink(missing_ok=True)


def read_record(folder: str | os.PathLike[str]) -> dict[str, Recorded]:
    """What a `Recorder` left in a run folder: name -> trajectory, in the order of their names there.

    Args:
        folder: The folder that the Recorder was given.

    Returns:
        Trajectories of at least one point each.

    Raises:
        RunFolderError: There is no record in the folder, or it is damaged.

    Cost: reads the file whole; at most 32 MB for each name.

    Example:
        >>> import frostline as fl, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with fl.Recorder(folder) as recorder:
        ...     for step in range(3):
        ...         recorder(loss=1 / (1 + step))
        >>> loss = read_record(folder)["loss"]
        >>> loss.steps, loss.values[:2].tolist()
        ([0, 1, 2], [1.0, 0.5])
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise RunFolderError(f"{path}: no such file. Name a folder that fl.Recorder wrote to.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
            about = json.loads(metadata["trajectories"])
            return {name: _recorded(name, one, _Tensors(file)) for name, one in about.items()}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise RunFolderError(f"{path}: damaged: {reason}. Delete it, or copy it again.") from None


class _Tensors:
    """The tensors of an open file by their names."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getitem__(self, name: str) -> Tensor:
        return cast("Tensor", self._file.get_tensor(name))


def _recorded(name: str, about: dict[str, Any], tensors: _Tensors) -> Recorded:
    steps, values = tensors[name + STEPS], tensors[name]
    kind, words, stride = about["kind"], about["words"], about["stride"]
    if kind not in ("scalar", "tensor", "rows") or type(stride) is not int or stride < 1:
        raise ValueError(f"{name!r} is described wrongly")
    if steps.dtype != torch.int64 or steps.ndim != 1 or not len(steps) or bool((steps.diff() <= 0).any()):
        raise ValueError(f"the steps of {name!r} do not ascend")
    if values.ndim == 0 or len(values) != len(steps) or (kind == "scalar") != (values.ndim == 1):
        raise ValueError(f"{name!r} has {len(steps)} steps and values of shape {tuple(values.shape)}")
    if (words is None) == (kind == "rows"):
        raise ValueError(f"{name!r} has words where it has no rows, or none where it has")
    if words is not None and not (
        isinstance(words, list) and len(words) == values.shape[1] and all(isinstance(word, str) for word in words)
    ):
        raise ValueError(f"the words of {name!r} are not one for each row")
    return Recorded(kind, steps.tolist(), values, words, stride)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
