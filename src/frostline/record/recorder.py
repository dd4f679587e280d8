"""Trajectories of what you choose, written to a run folder while a model trains.

Each call is one step: the Recorder looks at every thing it was given and keeps what it sees, at most 1,024 points of
each over the whole run (see trajectory.py), fewer of large ones. Every ten seconds, and at the end, one file in the run
folder is replaced, so that a run that dies leaves a record that can be read.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Mapping
from contextlib import nullcontext
from functools import reduce
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from frostline.errors import RunFolderError, SelectionError, ShapeError
from frostline.partial.sharded import is_sharded
from frostline.probe.restore.rng import undrawn
from frostline.record.record_file import FILE, STEPS, Kind, Recorded, read_record, write_record
from frostline.record.trajectory import Trajectory
from frostline.record.watched import Watched

POINTS, NUMBERS = 1024, 1 << 22  # at most so many points of one thing, and so many numbers
_PAUSE = 10.0  # seconds between two writes
_SHARE = 0.05  # of the time may go into writing


class Recorder:
    """Records tensors, rows and norms over training: call it once a step.

    Args:
        run_folder: Where to write; made if it is missing. A record that is there is replaced (see `step`).
        watched: Name -> what is recorded at each step under that name:
            a tensor of at most 262,144 numbers, such as a bias; a partial tensor counts as the whole one;
            a pair (table, ids), rows of a table by the ids that `fl.rows` takes, or by words: {"frost": 17, ...};
            a function of no arguments that returns a tensor or a number, such as `lambda: weight.norm()`; it may stand
            for the table of a pair, too.
        step: The number of the first call. A run that goes on from a checkpoint passes the number of the call it would
            make next: what the folder holds before that step is kept, what it holds from that step on is dropped.

    Raises:
        RowError: Ids are outside the table or repeated.
        SelectionError: A tensor is too large to be recorded whole, sharded, sparse or complex; a name is used twice.
        RunFolderError: The folder cannot be written to, or its record does not fit `watched`.
        PartialTensorError: From a call, when a later plan has put other parts in the place of a tensor.

    Nothing that is looked at changes; a function of yours should only look, too (the random generators of torch, Python
    and numpy stay where they were, whatever it draws). A tensor is recorded with its own dtype, bit for bit; numbers as
    float64. With torch.distributed, process 0 writes and the others only look.

    Cost: a copy of what is recorded at each step, on its own device, and 0.2 ms where functions are called; memory for
        at most 1,024 points and 4 million numbers of each name. Writing takes at most 5 % of the time.

    Example:
        >>> import tempfile, torch, frostline as fl
        >>> from frostline.record import read_record
        >>> folder, table = tempfile.mkdtemp(), torch.nn.Embedding(1000, 2)
        >>> optimizer = torch.optim.SGD(table.parameters(), lr=1.0)
        >>> watched = {"words": (table.weight, {"frost": 17, "line": 42}), "norm": lambda: table.weight.norm()}
        >>> with fl.Recorder(folder, watched) as recorder:
        ...     recorder()  # before the first step
        ...     for _ in range(3):
        ...         loss = table(torch.tensor([17])).sum()
        ...         loss.backward()
        ...         optimizer.step()
        ...         recorder(loss=loss)
        >>> record = read_record(folder)
        >>> {name: tuple(one.values.shape) for name, one in record.items()}
        {'words': (4, 2, 2), 'norm': (4,), 'loss': (3,)}
        >>> path = record["words"].values[:, 1]  # "line" stood still
        >>> torch.equal(path, path[:1].expand(4, 2))
        True
    """

    def __init__(
        self, run_folder: str | os.PathLike[str], watched: Mapping[str, Any] | None = None, *, step: int = 0
    ) -> None:
        if type(step) is not int or step < 0:
            raise ValueError(f"step: {step!r} is no step. Pass the number of the first call, 0 or more.")
        self._watched = [Watched(_legal(name), what) for name, what in (watched or {}).items()]
        self._asks = any(one.asks for one in self._watched)
        self._names = {one.name for one in self._watched}
        self._step = step
        self._store = _Store(Path(run_folder))
        if step and (Path(run_folder) / FILE).exists():
            self._store.take_up(read_record(run_folder), step)
        self._store.begin()
        self._finish = weakref.finalize(self, self._store.write_unless_replaced)

    def __call__(self, **scalars: float | Tensor) -> None:
        """Record one step.

        Args:
            scalars: More numbers of this step under their names, such as `loss=loss`; tensors of one entry will do.
                They may come in some calls only, such as a score after each epoch.
        """
        step, self._step = self._step, self._step + 1  # a call that raises has had its number
        with undrawn() if self._asks else nullcontext():
            for one in self._watched:
                self._store.add(step, one.name, one.look(), one.words)
        for name, value in scalars.items():
            if name in self._names:
                raise SelectionError(f"{name}: is recorded already under this name. Give the number another one.")
            self._store.add(step, _legal(name), _scalar(name, value), None)
        self._store.write_now_and_then()

    def flush(self) -> None:
        """Write what was recorded so far: before a checkpoint, say, from which the run may go on."""
        self._store.write_what_is_new()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.flush()


class _Store:
    """The trajectories and their file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = os.getpid()
        self._trajectories: dict[str, Trajectory] = {}
        self._about: dict[str, tuple[Kind, list[str] | None]] = {}
        self._new = False
        self._next = 0.0
        self._written: tuple[int, int] | None = None  # which file it was that was written last

    def take_up(self, record: Mapping[str, Recorded], step: int) -> None:
        """Go on from a record, of which the points before `step` are kept."""
        for name, one in record.items():
            path = Trajectory(_limit(one.values[0].numel()), one.stride, zip(one.steps, one.values, strict=True))
            path.forget_from(step)
            if path.steps:
                self._trajectories[name], self._about[name] = path, (one.kind, one.words)

    def add(self, step: int, name: str, value: Tensor, words: list[str] | None) -> None:
        """Add a point to the trajectory `name`."""
        kind: Kind = "rows" if words is not None else "tensor" if value.ndim else "scalar"
        path = self._trajectories.get(name)
        if path is None:
            path = self._trajectories[name] = Trajectory(_limit(value.numel()))
            self._about[name] = kind, words
        if path.steps:
            before = path.values[-1]
            if self._about[name] != (kind, words):
                raise RunFolderError(
                    f"{self._folder / FILE}: {name!r} is the record of something else. Name another folder, or start "
                    "at step=0 to replace it."
                )
            if before.shape != value.shape:
                raise ShapeError(
                    f"{name}: has shape {tuple(value.shape)} at step {step}, and had {tuple(before.shape)} at step "
                    f"{path.steps[-1]}. What is recorded keeps its shape."
                )
        path.add(step, value)
        self._new = True

    def begin(self) -> None:
        """Make the folder and its file."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{self._folder}: cannot be made: {error.strerror}. Name another folder.") from None
        self.write()

    def write_now_and_then(self) -> None:
        """Write if it is time to."""
        if time.monotonic() >= self._next:
            self.write_what_is_new()

    def write_what_is_new(self) -> None:
        """Write if there is something new."""
        if self._new and os.getpid() == self._process:  # a forked process has its parent's record, and no part in it
            self.write()

    def write_unless_replaced(self) -> None:
        """Write if there is something new, and no later Recorder has begun in the same folder."""
        if not self._replaced():
            self.write_what_is_new()

    def write(self) -> None:
        """Replace the file."""
        began = time.monotonic()
        if not _first_process():
            return
        if self._replaced():
            raise RunFolderError(f"{self._folder / FILE}: another Recorder writes it now. Give each its own folder.")
        record = {}
        for name, path in self._trajectories.items():
            path.values = [value.cpu() if value.ndim else value.cpu().double() for value in path.values]
            kind, words = self._about[name]
            dtype = reduce(torch.promote_types, {value.dtype for value in path.values})  # a plan may have changed it
            values = torch.stack([value.to(dtype) for value in path.values])
            record[name] = Recorded(kind, path.steps, values, words, path.stride)
        write_record(self._folder, record)
        self._written = self._on_disk()
        now = time.monotonic()
        self._new, self._next = False, now + max(_PAUSE, (now - began) / _SHARE)

    def _replaced(self) -> bool:
        return self._written is not None and self._on_disk() not in (None, self._written)

    def _on_disk(self) -> tuple[int, int] | None:
        try:
            found = (self._folder / FILE).stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns


def _limit(numbers: int) -> int:
    """How many points of so many numbers each are kept."""
    return max(2, min(POINTS, NUMBERS // max(numbers, 1)))


def _legal(name: str) -> str:
    if not isinstance(name, str) or not name or name.endswith(STEPS) or name == "__metadata__":
        raise SelectionError(f"name: {name!r} cannot stand in a record. Pass a string that does not end in {STEPS!r}.")
    return name


def _scalar(name: str, value: float | Tensor) -> Tensor:
    if isinstance(value, Tensor):
        if is_sharded(value):
            raise SelectionError(f"{name}: sharded over processes. Pass `{name}.full_tensor()`.")
        if value.numel() != 1:
            raise ShapeError(f"{name}: has shape {tuple(value.shape)}, which is no number. Pass its mean or norm.")
        return value.detach().clone().reshape(())
    try:
        return torch.tensor(float(value), dtype=torch.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: {value!r} is no number.") from None


def _first_process() -> bool:
    return not (
        torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank()
    )
