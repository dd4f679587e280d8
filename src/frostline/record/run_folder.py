"""The files of a run folder, which `frostline report` draws: small, each of them optional.

about.json                {"title": ..., "facts": {name: text}}                     what the run was
plan.json                 Plan.to_dict()                                            what may learn
explanation.json          fl.explain(...).to_dict()                                 what learns, and why
path.json                 fl.explain(..., path_to=name).path.to_dict()              the way from the loss to a parameter
graph.json                {"nodes": fl.explain(..., path_to=name).graph}             the calls from parameters to loss
audit.json                {"frozen_compared", "frozen_moved", "learned_rows", "learned_rows_moved"}
confusion.json            {"types": [...], "rows": "gold", "columns": "predicted", "counts": [[...]]}
scores.json               {"text": name, "types": {type: {"precision", "recall", "f1", "gold", "found"}}, "all": {...},
                           "errors": [[times, text], ...]}
curves.jsonl              {"run": name, "epoch" or "step": n, "loss": x, ...}       one line per point, "run" optional
row_changes.safetensors   rows of a table before and after training, with their words
record.safetensors        what fl.Recorder saw (see record_file.py)

Letters used for shapes in this file:
    V  rows of the table          D  width of a row
    N  rows that are written      R  rows that learned
    T  types of entities
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from frostline.errors import RunFolderError
from frostline.files import replacing
from frostline.record.valid import ABOUT, AUDIT, CONFUSION, EXPLANATION, GRAPH, HOLDS, PATH, PLAN, SCORES, is_valid

CURVES, ROW_CHANGES = "curves.jsonl", "row_changes.safetensors"
_FORMAT = "frostline-row-changes-1"
_TENSORS = ("learns", "before", "after", "distances")
_MOST_LEARNED, _MOST_FROZEN = 1000, 300  # rows that are written


class HasDict(Protocol):
    """A plan, an explanation: an object that gives its content as plain values."""

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values."""


@dataclass(frozen=True)
class RowChanges:
    """Rows of a table before and after training: those that moved furthest, and some frozen ones to compare with.

    Attributes:
        words: The word of each row, shape (N,).
        learns: Whether the row learned, bool, shape (N,); rows that learned come first, the furthest moved first.
        before: The rows before training, shape (N, D).
        after: The rows after training, shape (N, D).
        distances: How far each of the R rows that learned moved (Euclidean), float32, shape (R,).
    """

    words: list[str]
    learns: Tensor
    before: Tensor
    after: Tensor
    distances: Tensor

    @classmethod
    def from_tables(
        cls, words: Sequence[str], before: Tensor, after: Tensor, learned: Tensor, frozen: Iterable[int] = ()
    ) -> RowChanges:
        """Choose the rows of a table that are worth writing.

        Args:
            words: The word of each row, shape (V,).
            before: The table before training, shape (V, D).
            after: The table after training, shape (V, D).
            learned: Ids of the rows that learned, int64, shape (R,).
            frozen: Ids of rows that did not learn, the most interesting first.

        Returns:
            At most 1,000 rows that learned and 300 that did not.

        Example:
            >>> before, after = torch.zeros(3, 2), torch.tensor([[0.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
            >>> changes = RowChanges.from_tables(["a", "b", "c"], before, after, torch.tensor([1, 2]), frozen=[0])
            >>> changes.words, changes.distances.tolist()
            (['c', 'b', 'a'], [1.0, 5.0])
        """
        distances = (after[learned].float() - before[learned].float()).norm(dim=1)
        furthest = learned[distances.argsort(descending=True, stable=True)[:_MOST_LEARNED]]
        rows = torch.cat([furthest, torch.tensor(list(frozen)[:_MOST_FROZEN], dtype=torch.int64)])
        learns = torch.arange(len(rows)) < len(furthest)
        return cls([words[row] for row in rows.tolist()], learns, before[rows], after[rows], distances)

    def to_bytes(self) -> bytes:
        """Return the content of a safetensors file."""
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in _TENSORS}
        return save(tensors, {"format": _FORMAT, "words": json.dumps(self.words)})


@dataclass(frozen=True)
class Run:
    """What was found in a run folder; None or empty where a file is missing."""

    about: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None
    explanation: dict[str, Any] | None = None
    audit: dict[str, Any] | None = None
    confusion: dict[str, Any] | None = None
    scores: dict[str, Any] | None = None
    path: dict[str, Any] | None = None
    graph: dict[str, Any] | None = None
    curves: tuple[dict[str, Any], ...] = ()
    row_changes: RowChanges | None = None


def describe_run(
    run_folder: str | os.PathLike[str],
    *,
    title: str | None = None,
    facts: Mapping[str, str] | None = None,
    plan: HasDict | None = None,
    explanation: HasDict | None = None,
    audit: Mapping[str, int] | None = None,
    confusion: Mapping[str, Any] | None = None,
    scores: Mapping[str, Any] | None = None,
    curves: Iterable[Mapping[str, Any]] = (),
    row_changes: RowChanges | None = None,
) -> None:
    """Write to a run folder what `frostline report` shows; for arguments left out, existing files stay as they are.

    Args:
        run_folder: The run folder; made if it is missing.
        title: What the run was, in a few words.
        facts: More about the run: name -> text.
        plan: What `train_only` returned.
        explanation: What `fl.explain` returned; with `path_to`, the way to that parameter is written too.
        audit: What was compared and what moved: `frozen_compared` and `frozen_moved` (values), `learned_rows` and
            `learned_rows_moved`.
        confusion: The confusion matrix of entity types: `types`, T names; `rows` and `columns`, the titles "gold" and
            "predicted"; `counts`, T + 1 rows of T + 1 counts, of which the last row counts what was invented (no gold
            partner) and the last column what was missed (no predicted partner).
        scores: How well entities were found: `text`, the name of what was tagged; `types` (type -> `precision`,
            `recall` and `f1`, fractions, `gold` and `found`, counts) and `all`, the same of all; `errors`, the
            commonest first, pairs of how often and what.
        row_changes: Rows before and after training.

    Raises:
        RunFolderError: The folder cannot be written to.
        ValueError: An argument does not hold what is listed above.

    Example:
        >>> import frostline as fl, tempfile, torch
        >>> model, run_folder = torch.nn.Linear(3, 2), tempfile.mkdtemp()
        >>> plan = fl.train_only(model, {"bias": fl.everything})
        >>> describe_run(run_folder, title="Only the bias", plan=plan, curves=[{"step": 0, "loss": 0.7}])
        >>> read_run(run_folder).plan["learned"]
        2
    """
    run_folder = Path(run_folder)
    about = {"title": title, "facts": dict(facts or {})} if title is not None or facts is not None else None
    described = {
        ABOUT: about,
        PLAN: None if plan is None else plan.to_dict(),
        EXPLANATION: None if explanation is None else explanation.to_dict(),
        GRAPH: {"nodes": list(graph)} if (graph := getattr(explanation, "graph", ())) else None,
        PATH: None if (path := getattr(explanation, "path", None)) is None else path.to_dict(),
        AUDIT: None if audit is None else dict(audit),
        CONFUSION: None if confusion is None else dict(confusion),
        SCORES: None if scores is None else dict(scores),
    }
    lines = [json.dumps(point) + "\n" for point in curves]
    files: dict[str, bytes] = {CURVES: "".join(lines).encode()} if lines else {}
    for name, values in described.items():
        if values is not None:
            if not is_valid(name, values):
                raise ValueError(f"{name.removesuffix('.json')}: does not hold {HOLDS[name]}.")
            files[name] = (json.dumps(values, indent=1) + "\n").encode()
    if row_changes is not None:
        files[ROW_CHANGES] = row_changes.to_bytes()
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            with replacing(run_folder / name) as unfinished:
                unfinished.write_bytes(data)
    except OSError as error:
        raise RunFolderError(f"{run_folder}: cannot be written to: {error.strerror}. Name another folder.") from None


def read_run(run_folder: str | os.PathLike[str]) -> Run:
    """Read what `describe_run` wrote.

    Raises:
        RunFolderError: The folder is missing, or a file in it is damaged; the message names the file and the line.
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise RunFolderError(f"{folder}: no such folder. Name one that fl.Recorder or `frostline tagger train` wrote.")
    return Run(
        about=_read_object(folder / ABOUT),
        plan=_read_object(folder / PLAN),
        explanation=_read_object(folder / EXPLANATION),
        audit=_read_object(folder / AUDIT),
        confusion=_read_object(folder / CONFUSION),
        scores=_read_object(folder / SCORES),
        path=_read_object(folder / PATH),
        graph=_read_object(folder / GRAPH),
        curves=tuple(_read_curves(folder / CURVES)),
        row_changes=_read_row_changes(folder / ROW_CHANGES),
    )


def _read_object(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    value = _parse_json(path, path.read_bytes(), 1)
    if not is_valid(path.name, value):
        raise RunFolderError(f"{path}:1: does not hold {HOLDS[path.name]}. Delete it, or write it again.")
    found: dict[str, Any] = value
    return found


def _read_curves(path: Path) -> Iterable[dict[str, Any]]:
    if not path.exists():
        return
    for line, data in enumerate(path.read_bytes().splitlines(), start=1):
        point = _parse_json(path, data, line)
        axis = [name for name in ("epoch", "step") if isinstance(point, dict) and name in point]
        if len(axis) != 1 or type(point[axis[0]]) is not int:
            raise RunFolderError(f'{path}:{line}: expected a point of a curve with an integer "epoch" or "step".')
        yield point


def _parse_json(path: Path, data: bytes, line: int) -> Any:
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise RunFolderError(
            f"{path}:{line + error.lineno - 1}: damaged: {error.msg}. Delete it, or write it again."
        ) from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise RunFolderError(f"{path}:{line}: damaged: {error}. Delete it, or write it again.") from None


def _read_row_changes(path: Path) -> RowChanges | None:
    """Return the rows in a file; None if it is missing."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {_FORMAT!r}")
            words: Any = json.loads(metadata["words"])
            learns, before, after, distances = (file.get_tensor(name) for name in _TENSORS)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError("its words are not a list of strings")
        if before.ndim != 2 or before.shape != after.shape or len(before) != len(words) or distances.ndim != 1:
            raise ValueError(f"{len(words)} words for rows of shape {tuple(before.shape)} and {tuple(after.shape)}")
        if learns.dtype != torch.bool or learns.shape != (len(words),):
            raise ValueError("it does not say which rows learned")
    except (OSError, SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise RunFolderError(
            f"{path}: damaged: {' '.join(str(error).split())}. Delete it, or write it again."
        ) from None
    return RowChanges(words, learns, before, after, distances)
