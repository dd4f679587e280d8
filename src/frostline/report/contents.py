"""Everything a run folder holds: the files of `describe_run` and the record of a Recorder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from frostline.errors import RunFolderError
from frostline.record import Recorded, Run, read_record, read_run
from frostline.record.record_file import FILE


class Curve(NamedTuple):
    """A line of a chart: a quantity of a run over epochs or steps."""

    quantity: str
    run: str
    axis: str
    x: list[int]
    y: list[float]


@dataclass(frozen=True)
class Contents:
    """What was found in `folder`."""

    folder: Path
    run: Run
    record: dict[str, Recorded]

    def curves(self) -> list[Curve]:
        """Return every scalar over time: those of curves.jsonl first, then those of the record."""
        found: dict[tuple[str, str, str], Curve] = {}
        for quantity, run, axis, x, y in self._points():
            curve = found.setdefault((quantity, run, axis), Curve(quantity, run, axis, [], []))
            curve.x.append(x)
            curve.y.append(y)
        recorded = [
            Curve(name, "", "step", trajectory.steps, trajectory.values.tolist())
            for name, trajectory in self.record.items()
            if trajectory.kind == "scalar"
        ]
        return [*found.values(), *recorded]

    def _points(self) -> Iterator[tuple[str, str, str, int, float]]:
        for point in self.run.curves:
            axis = "epoch" if "epoch" in point else "step"
            for name, value in point.items():
                if name not in (axis, "run") and isinstance(value, int | float):
                    yield name, str(point.get("run", "")), axis, point[axis], float(value)


def read_contents(run_folder: str | os.PathLike[str]) -> Contents:
    """Read a run folder.

    Raises:
        RunFolderError: The folder is missing or holds none of a run's files, or a file in it is damaged.
    """
    folder = Path(run_folder)
    run = read_run(folder)
    record = read_record(folder) if (folder / FILE).exists() else {}
    if run == Run() and not record:
        raise RunFolderError(
            f"{folder}: no file of a run in it. Name a folder that fl.Recorder, `frostline tagger train` or "
            "`frostline demo` wrote."
        )
    return Contents(folder, run, record)
