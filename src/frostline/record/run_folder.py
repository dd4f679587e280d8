"""What a training run leaves in its folder for `frostline report`: small files, each of them optional.

about.json             {"title": ..., "facts": {name: text}}                     what the run was
plan.json              Plan.to_dict()                                            what was to learn
explanation.json       fl.explain(...).to_dict()                                 what learns, and why
audit.json             {"frozen_compared", "frozen_moved", "learned_rows", "learned_rows_moved"}
curves.jsonl           {"run": name, "epoch" or "step": n, "loss": x, ...}       one line a point, "run" optional
movement.safetensors   rows of a table before and after (see movement.py)
record.safetensors     what fl.Recorder saw (see record_file.py)

Rows of a table before and after training: few enough to keep, with their words.

Letters used for shapes in this file:
    V  rows of the table          D  width of a row
    N  rows that are kept         R  rows that learned
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from frostline.errors import RunFolderError
from frostline.probe.explain.verdicts import VERDICTS

ABOUT, PLAN, EXPLANATION, AUDIT = "about.json", "plan.json", "explanation.json", "audit.json"
CURVES, MOVEMENT = "curves.jsonl", "movement.safetensors"
_HOLDS = {
    ABOUT: "a title and facts",
    PLAN: "what Plan.to_dict() gives",
    EXPLANATION: "what Explanation.to_dict() gives",
    AUDIT: "the counts frozen_compared, frozen_moved, learned_rows and learned_rows_moved",
}


class HasDict(Protocol):
    """A plan, an explanation: something that says itself in plain values."""

    def to_dict(self) -> dict[str, Any]:
        """The plain values."""


@dataclass(frozen=True)
class Run:
    """What was found in a run folder; None or empty where there is nothing."""

    about: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None
    explanation: dict[str, Any] | None = None
    audit: dict[str, Any] | None = None
    curves: tuple[dict[str, Any], ...] = ()
    movement: Movement | None = None


def describe_run(
    folder: str | os.PathLike[str],
    *,
    title: str | None = None,
    facts: Mapping[str, str] | None = None,
    plan: HasDict | None = None,
    explanation: HasDict | None = None,
    audit: Mapping[str, int] | None = None,
    curves: Iterable[Mapping[str, Any]] = (),
    movement: Movement | None = None,
) -> None:
    """Leave in a run folder what `frostline report` shows; what is not given stays as it is there.

    Args:
        folder: The run folder; made if it is missing.
        title: What the run was, in a few words.
        facts: What else to say of it: name -> text.
        plan: What `train_only` returned.
        explanation: What `fl.explain` returned.
        audit: What was compared and what moved: `frozen_compared` and `frozen_moved` (numbers), `learned_rows` and
            `learned_rows_moved`.
        curves: Points: `epoch` or `step`, numbers under their names, and `run` where there are several.
        movement: Rows before and after.

    Raises:
        RunFolderError: The folder cannot be written to.
        ValueError: Something given is not what it should be.

    Example:
        >>> import frostline as fl, tempfile, torch
        >>> model, folder = torch.nn.Linear(3, 2), tempfile.mkdtemp()
        >>> plan = fl.train_only(model, {"bias": fl.everything})
        >>> describe_run(folder, title="Only the bias", plan=plan, curves=[{"step": 0, "loss": 0.7}])
        >>> read_run(folder).plan["learned"]
        2
    """
    folder = Path(folder)
    about = {"title": title, "facts": dict(facts or {})} if title is not None or facts is not None else None
    described = {
        ABOUT: about,
        PLAN: None if plan is None else plan.to_dict(),
        EXPLANATION: None if explanation is None else explanation.to_dict(),
        AUDIT: None if audit is None else dict(audit),
    }
    lines = [json.dumps(point) + "\n" for point in curves]
    files: dict[str, bytes] = {CURVES: "".join(lines).encode()} if lines else {}
    for name, values in described.items():
        if values is not None:
            if not _fits(name, values):
                raise ValueError(f"{name.removesuffix('.json')}: does not hold {_HOLDS[name]}.")
            files[name] = (json.dumps(values, indent=1) + "\n").encode()
    if movement is not None:
        files[MOVEMENT] = movement.to_bytes()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            temporary = folder / f".{name}.{secrets.token_hex(4)}.tmp"
            try:
                temporary.write_bytes(data)
                temporary.replace(folder / name)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be written to: {error.strerror}. Name another folder.") from None


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Read what `describe_run` left.

    Raises:
        RunFolderError: The folder is missing, or a file in it is damaged; the message names the file and the line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunFolderError(f"{folder}: no such folder. Name one that fl.Recorder or `frostline tagger train` wrote.")
    about, plan, explanation, audit = (_object(folder / name) for name in (ABOUT, PLAN, EXPLANATION, AUDIT))
    return Run(about, plan, explanation, audit, tuple(_points(folder / CURVES)), read_movement(folder / MOVEMENT))


def _object(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    value = _json(path, path.read_bytes(), 1)
    if not _fits(path.name, value):
        raise RunFolderError(f"{path}:1: does not hold {_HOLDS[path.name]}. Delete it, or write it again.")
    found: dict[str, Any] = value
    return found


def _fits(name: str, value: Any) -> bool:
    """Whether `value` is what the file `name` holds, as far as it is read again."""
    if not isinstance(value, dict):
        return False
    if name == ABOUT:
        return isinstance(value.get("facts", {}), dict)
    if name == AUDIT:
        return _whole(value, "frozen_compared", "frozen_moved", "learned_rows", "learned_rows_moved")
    if name == EXPLANATION:
        return all(
            isinstance(said, dict)
            and said.get("verdict") in VERDICTS
            and isinstance(said.get("notes") or [], list)
            and isinstance(said.get("tied") or [], list)
            and isinstance(said.get("groups") or {}, dict)
            and _whole(said.get("groups") or {})
            for said in value.values()
        )
    lines = value.get("tensors")
    return (
        isinstance(lines, dict)
        and _whole(value, "learned", "total")
        and all(
            isinstance(line, dict)
            and _whole(line, "learned", "total")
            and isinstance(line.get("shape"), list)
            and _whole(dict(enumerate(line["shape"])))
            and (line.get("count") is None or _whole(line, "count"))
            and isinstance(line.get("tied") or [], list)
            for line in lines.values()
        )
    )


def _whole(values: dict[Any, Any], *names: str) -> bool:
    """Whether the values of `names`, of all names where none is given, are there and whole numbers, 0 or more."""
    found = [values.get(name) for name in names] if names else list(values.values())
    return all(type(value) is int and value >= 0 for value in found)


def _points(path: Path) -> Iterable[dict[str, Any]]:
    if not path.exists():
        return
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        point = _json(path, line, number)
        axis = [name for name in ("epoch", "step") if isinstance(point, dict) and name in point]
        if len(axis) != 1 or type(point[axis[0]]) is not int:
            raise RunFolderError(
                f'{path}:{number}: no point of a curve: it needs one "epoch" or "step", a whole number.'
            )
        yield point


def _json(path: Path, data: bytes, line: int) -> Any:
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise RunFolderError(
            f"{path}:{line + error.lineno - 1}: damaged: {error.msg}. Delete it, or write it again."
        ) from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise RunFolderError(f"{path}:{line}: damaged: {error}. Delete it, or write it again.") from None


_FORMAT = "frostline-movement-1"
_TENSORS = ("learns", "before", "after", "distances")
_FURTHEST, _STANDING = 1000, 300  # rows that are kept


@dataclass(frozen=True)
class Movement:
    """Rows of a table before and after: those that moved furthest, and some that stood still, to compare with.

    Attributes:
        words: A word for each kept row, shape (N,).
        learns: Whether the row learned, bool, shape (N,); the ones that learned come first, the furthest first.
        before: The kept rows before training, shape (N, D).
        after: The kept rows after training, shape (N, D).
        distances: How far each of the R rows that learned moved (Euclidean), float32, shape (R,).
    """

    words: list[str]
    learns: Tensor
    before: Tensor
    after: Tensor
    distances: Tensor

    @classmethod
    def of(
        cls, words: Sequence[str], before: Tensor, after: Tensor, learned: Tensor, standing: Iterable[int] = ()
    ) -> Movement:
        """Choose what to keep of a table.

        Args:
            words: The word of each row, shape (V,).
            before: The table before training, shape (V, D).
            after: The table after training, shape (V, D).
            learned: Ids of the rows that learned, int64, shape (R,).
            standing: Ids of rows that did not, the most telling first.

        Returns:
            At most 1,000 rows that learned and 300 that did not.

        Example:
            >>> before, after = torch.zeros(3, 2), torch.tensor([[0.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
            >>> moved = Movement.of(["a", "b", "c"], before, after, torch.tensor([1, 2]), standing=[0])
            >>> moved.words, moved.distances.tolist()
            (['c', 'b', 'a'], [1.0, 5.0])
        """
        distances = (after[learned].float() - before[learned].float()).norm(dim=1)
        furthest = learned[distances.argsort(descending=True, stable=True)[:_FURTHEST]]
        rows = torch.cat([furthest, torch.tensor(list(standing)[:_STANDING], dtype=torch.int64)])
        learns = torch.arange(len(rows)) < len(furthest)
        return cls([words[row] for row in rows.tolist()], learns, before[rows], after[rows], distances)

    def to_bytes(self) -> bytes:
        """The movement as a safetensors file."""
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in _TENSORS}
        return save(tensors, {"format": _FORMAT, "words": json.dumps(self.words)})


def read_movement(path: Path) -> Movement | None:
    """The movement in a file; None where there is no such file; RunFolderError where it is damaged."""
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
            raise ValueError("its words are no list of strings")
        if before.ndim != 2 or before.shape != after.shape or len(before) != len(words) or distances.ndim != 1:
            raise ValueError(f"{len(words)} words for rows of shape {tuple(before.shape)} and {tuple(after.shape)}")
        if learns.dtype != torch.bool or learns.shape != (len(words),):
            raise ValueError("it does not say which rows learned")
    except (OSError, SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise RunFolderError(
            f"{path}: damaged: {' '.join(str(error).split())}. Delete it, or write it again."
        ) from None
    return Movement(words, learns, before, after, distances)
