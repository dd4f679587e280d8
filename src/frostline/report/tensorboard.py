"""A run folder for TensorBoard: scalars, histograms, and rows with their words for the projector.

scalars      every curve (a run of curves.jsonl is a run of TensorBoard's), every scalar of the record
histograms   every tensor and all rows of the record, at each point
graph        the calls of a pass, where `fl.explain(..., path_to=...)` has left them
projector    rows before and after training, with their words
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


def write_tensorboard(run_folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Write what a run folder holds for `tensorboard --logdir PATH`.

    Args:
        run_folder: What `fl.Recorder`, `describe_run`, `frostline tagger train` or `frostline demo` wrote.
        path: A new or empty folder to write to, because TensorBoard shows everything in a folder.

    Returns:
        `path`.

    Raises:
        RunFolderError: `run_folder` is not a run folder, a file in it is damaged, or `path` is not empty.
        MissingExtraError: tensorboard is not installed.

    Cost: a histogram for each point of each recorded tensor: about a millisecond each.
    """
    contents, path = read_contents(run_folder), Path(path)
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError(
            "writing for TensorBoard needs tensorboard. Install it: pip install 'frostline[report]'"
        ) from None
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunFolderError(f"{path}: not an empty folder, so the runs would be mixed up. Name a new folder.")
    writers: dict[str, Any] = {}
    for curve in contents.curves():
        if curve.run not in writers:
            writers[curve.run] = SummaryWriter(path / _folder_name(curve.run) if curve.run else path)
        for x, y in zip(curve.x, curve.y, strict=True):
            writers[curve.run].add_scalar(curve.quantity, y, x)
    writer = writers.get("") or writers.setdefault("", SummaryWriter(path))
    _histograms(writer, contents)
    _projector(writer, contents)
    _graph(writer, contents)
    for open_writer in writers.values():
        open_writer.close()
    return path


def _histograms(writer: SummaryWriter, contents: Contents) -> None:
    for name, recorded in contents.record.items():
        if recorded.kind != "scalar":
            for step, value in zip(recorded.steps, recorded.values, strict=True):
                finite = value.double()[value.double().isfinite()]
                if len(finite):
                    writer.add_histogram(name, finite, step)


def _projector(writer: SummaryWriter, contents: Contents) -> None:
    if contents.run.row_changes is not None:
        changes = contents.run.row_changes
        _embedding(writer, "table", "before", changes.words, changes.before)
        _embedding(writer, "table", "after", changes.words, changes.after)
    for name, recorded in contents.record.items():
        if recorded.words is not None:
            for tag, point in (("before", 0), ("after", -1)):
                _embedding(writer, name, tag, recorded.words, recorded.values[point], recorded.steps[point])


def _graph(writer: SummaryWriter, contents: Contents) -> None:
    if contents.run.graph is None:
        return
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.graph_pb2 import GraphDef
    from tensorboard.compat.proto.node_def_pb2 import NodeDef

    nodes = [
        NodeDef(name=node["name"], op=node["call"], input=node["inputs"], device=node["where"] or "")
        for node in contents.run.graph["nodes"]
    ]
    graph = GraphDef(node=nodes).SerializeToString()
    writer._get_file_writer().event_writer.add_event(Event(graph_def=graph))


def _embedding(writer: SummaryWriter, name: str, tag: str, words: list[str], rows: Tensor, step: int = 0) -> None:
    rows = rows.float().reshape(len(rows), -1)  # (R, D)
    if rows.numel():
        lines = (" ".join(word.split()) or "(blank)" for word in words)  # the file has one word per line
        words = [line.encode("utf-8", "replace").decode() for line in lines]
        writer.add_embedding(torch.nan_to_num(rows), metadata=words, global_step=step, tag=f"{name} {tag}")


def _folder_name(name: str) -> str:
    """Return `name` with every character replaced that a folder's name should not have."""
    return "".join(letter if letter.isalnum() or letter in " -_." else "_" for letter in name).strip(". ") or "run"
