"""A run folder for TensorBoard: scalars, histograms, and rows with their words for the projector.

scalars      every curve (a run of curves.jsonl is a run of TensorBoard's), every number of the record
histograms   every tensor and all rows of the record, at each of its points
projector    rows before and after, with their words: of the movement, and of recorded rows
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from frostline.errors import MissingExtraError, RunFolderError
from frostline.report.contents import Contents, read_contents

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def write_tensorboard(run_folder: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Path:
    """Write what a run folder holds for `tensorboard --logdir FOLDER`.

    Args:
        run_folder: What `fl.Recorder`, `describe_run`, `frostline tagger train` or `frostline demo` left.
        folder: Where to write: a new or empty folder, because TensorBoard shows all that is in one.

    Returns:
        The path of the folder.

    Raises:
        RunFolderError: It is no run folder, a file in it is damaged, or `folder` holds something.
        MissingExtraError: tensorboard is not installed.

    Cost: a histogram for each point of each recorded tensor: about a millisecond each.
    """
    contents, folder = read_contents(run_folder), Path(folder)
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError(
            "writing for TensorBoard needs tensorboard. Install it: pip install 'frostline[report]'"
        ) from None
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunFolderError(f"{folder}: holds something already, which would be mixed up. Name a new folder.")
    writers: dict[str, Any] = {}
    for curve in contents.curves():
        if curve.run not in writers:
            writers[curve.run] = SummaryWriter(folder / _plain(curve.run) if curve.run else folder)
        for x, y in zip(curve.x, curve.y, strict=True):
            writers[curve.run].add_scalar(curve.quantity, y, x)
    writer = writers.get("") or writers.setdefault("", SummaryWriter(folder))
    _histograms(writer, contents)
    _projector(writer, contents)
    for each in writers.values():
        each.close()
    return folder


def _histograms(writer: SummaryWriter, contents: Contents) -> None:
    for name, one in contents.record.items():
        if one.kind != "scalar":
            for step, value in zip(one.steps, one.values, strict=True):
                finite = value.double()[value.double().isfinite()]
                if len(finite):
                    writer.add_histogram(name, finite, step)


def _projector(writer: SummaryWriter, contents: Contents) -> None:
    if contents.run.movement is not None:
        movement = contents.run.movement
        _embedding(writer, "movement", "before", movement.words, movement.before)
        _embedding(writer, "movement", "after", movement.words, movement.after)
    for name, one in contents.record.items():
        if one.words is not None:
            for tag, step, rows in (("before", one.steps[0], one.values[0]), ("after", one.steps[-1], one.values[-1])):
                _embedding(writer, name, tag, one.words, rows, step)


def _embedding(writer: SummaryWriter, name: str, tag: str, words: list[str], rows: Tensor, step: int = 0) -> None:
    rows = rows.float().reshape(len(rows), -1)  # (R, D)
    if rows.numel():
        lines = (" ".join(word.split()) or "(blank)" for word in words)  # one word a line of a table
        words = [line.encode("utf-8", "replace").decode() for line in lines]
        writer.add_embedding(torch.nan_to_num(rows), metadata=words, global_step=step, tag=f"{name} {tag}")


def _plain(name: str) -> str:
    """`name` as the name of a folder."""
    return "".join(letter if letter.isalnum() or letter in " -_." else "_" for letter in name).strip(". ") or "run"
