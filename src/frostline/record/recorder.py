"""Record values while a model trains, and write them to a run folder.

Each call is one step: the Recorder copies what it watches. It keeps at most 1,024 points of each name over the whole
run (see trajectory.py), fewer of large tensors. Every ten seconds, and at the end, the file in the run folder is
replaced, so a run that crashes leaves a record that can be read.
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
from frostline.probe.restore.rng import rng_restored
from frostline.record.record_file import FILE, STEPS, Kind, Recorded, read_record, write_record
from frostline.record.trajectory import Trajectory
from frostline.record.watched import Watched

MOST_POINTS, MOST_VALUES = 1024, 1 << 22  # of one name
_PAUSE = 10.0  # seconds between two writes, at least
_SHARE = 0.05  # of the time that writing may take


class Recorder:
    """Records tensors, rows and norms over training: call it once per step.

    Args:
        run_folder: Where to write; made if it is missing. An existing record is replaced (see `step`).
        watched: Name -> what is recorded at each step under that name:
            a tensor of at most 262,144 values, such as a bias; a partial tensor is recorded as the whole tensor;
            a pair (table, ids), rows of a table by the ids that `fl.rows` takes, or by words: {"frost": 17, ...};
            a function of no arguments that returns a tensor or a number, such as `lambda: weight.norm()`; the table of
            a pair may be such a function, too.
        step: The step of the first call. To resume from a checkpoint pass the step of the next call: points before it
            are kept, points at and after it are dropped.

    Raises:
        RowError: Ids are outside the table or repeated.
        SelectionError: A tensor is too large to be recorded, sharded, sparse or complex; a name is used twice.
        RunFolderError: The folder cannot be written to, or its record does not fit `watched`.
        PartialTensorError: From a call, if a later plan has replaced a tensor.

    Recording changes nothing; functions that you pass should not either (whatever they draw, the random states of
    torch, Python and numpy are restored). A tensor is recorded bit for bit in its own dtype, a number as float64. With
    torch.distributed only rank 0 writes.

    Cost: a copy of what is recorded at each step, on its own device, and 0.2 ms if functions are called; memory for at
        most 1,024 points and 4 million values of each name. Writing takes at most 5 % of the time.

    Example:
        >>> import tempfile, torch, frostline as fl
        >>> from frostline.record import read_record
        >>> run_folder, table = tempfile.mkdtemp(), torch.nn.Embedding(1000, 2)
        >>> optimizer = torch.optim.SGD(table.parameters(), lr=1.0)
        >>> watched = {"words": (table.weight, {"frost": 17, "line": 42}), "norm": lambda: table.weight.norm()}
        >>> with fl.Recorder(run_folder, watched) as recorder:
        ...     recorder()  # before the first step
        ...     for _ in range(3):
        ...         loss = table(torch.tensor([17])).sum()
        ...         loss.backward()
        ...         optimizer.step()
        ...         recorder(loss=loss)
        >>> record = read_record(run_folder)
        >>> {name: tuple(trajectory.values.shape) for name, trajectory in record.items()}
        {'words': (4, 2, 2), 'norm': (4,), 'loss': (3,)}
        >>> line = record["words"].values[:, 1]  # "line" did not move
        >>> torch.equal(line, line[:1].expand(4, 2))
        True
    """

    def __init__(
        self, run_folder: str | os.PathLike[str], watched: Mapping[str, Any] | None = None, *, step: int = 0
    ) -> None:
        if type(step) is not int or step < 0:
            raise ValueError(f"step: expected the step of the first call, 0 or more, got {step!r}.")
        self._watched = [Watched(_check_name(name), what) for name, what in (watched or {}).items()]
        self._calls_functions = any(watched.calls_function for watched in self._watched)
        self._names = {watched.name for watched in self._watched}
        self._step = step
        self._store = _Store(Path(run_folder))
        if step and (Path(run_folder) / FILE).exists():
            self._store.resume(read_record(run_folder), step)
        self._store.begin()
        self._finish = weakref.finalize(self, self._store.write_unless_replaced)

    def __call__(self, **scalars: float | Tensor) -> None:
        """Record one step.

        Args:
            scalars: Numbers of this step under their names, such as `loss=loss`, or tensors of one element. A name may
                come in some calls only, such as a score after each epoch.
        """
        step, self._step = self._step, self._step + 1  # counted even if this call raises
        with rng_restored() if self._calls_functions else nullcontext():
            for watched in self._watched:
                self._store.add(step, watched.name, watched.read(), watched.words)
        for name, value in scalars.items():
            if name in self._names:
                raise SelectionError(f"{name}: already recorded under this name. Choose another name.")
            self._store.add(step, _check_name(name), _scalar(name, value), None)
        self._store.write_if_due()

    def flush(self) -> None:
        """Write what was recorded so far, such as before a checkpoint."""
        self._store.write_if_new()

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
        self._written: tuple[int, int] | None = None  # inode and time of the file written last

    def resume(self, record: Mapping[str, Recorded], step: int) -> None:
        """Continue a record with its points before `step`."""
        for name, recorded in record.items():
            points = zip(recorded.steps, recorded.values, strict=True)
            trajectory = Trajectory(_limit(recorded.values[0].numel()), recorded.stride, points)
            trajectory.forget_from(step)
            if trajectory.steps:
                self._trajectories[name], self._about[name] = trajectory, (recorded.kind, recorded.words)

    def add(self, step: int, name: str, value: Tensor, words: list[str] | None) -> None:
        """Add a point to the trajectory `name`."""
        kind: Kind = "rows" if words is not None else "tensor" if value.ndim else "scalar"
        trajectory = self._trajectories.get(name)
        if trajectory is None:
            trajectory = self._trajectories[name] = Trajectory(_limit(value.numel()))
            self._about[name] = kind, words
        if trajectory.steps:
            before = trajectory.values[-1]
            if self._about[name] != (kind, words):
                raise RunFolderError(
                    f"{self._folder / FILE}: {name!r} was recorded with another kind or other words. Name another "
                    "folder, or pass step=0 to replace it."
                )
            if before.shape != value.shape:
                raise ShapeError(
                    f"{name}: has shape {tuple(value.shape)} at step {step}, and had {tuple(before.shape)} at step "
                    f"{trajectory.steps[-1]}. A recorded tensor must keep its shape."
                )
        trajectory.add(step, value)
        self._new = True

    def begin(self) -> None:
        """Make the folder and an empty record in it."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{self._folder}: cannot be made: {error.strerror}. Name another folder.") from None
        self.write()

    def write_if_due(self) -> None:
        """Write new points if enough time has passed since the last write."""
        if time.monotonic() >= self._next:
            self.write_if_new()

    def write_if_new(self) -> None:
        """Write if a point was added."""
        if self._new and os.getpid() == self._process:  # not in a forked child: the record is its parent's
            self.write()

    def write_unless_replaced(self) -> None:
        """Write if a point was added, unless a later Recorder has replaced the file."""
        if not self._replaced():
            self.write_if_new()

    def write(self) -> None:
        """Replace the file."""
        began = time.monotonic()
        if not _is_rank_0():
            return
        if self._replaced():
            raise RunFolderError(f"{self._folder / FILE}: another Recorder writes it now. Use one folder for each.")
        record = {}
        for name, trajectory in self._trajectories.items():
            trajectory.values = [value.cpu() if value.ndim else value.cpu().double() for value in trajectory.values]
            kind, words = self._about[name]
            dtypes = {value.dtype for value in trajectory.values}  # several if a later plan changed the dtype
            dtype = reduce(torch.promote_types, dtypes)
            values = torch.stack([value.to(dtype) for value in trajectory.values])
            record[name] = Recorded(kind, trajectory.steps, values, words, trajectory.stride)
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


def _limit(size: int) -> int:
    """Return the most points to keep if each has `size` values."""
    return max(2, min(MOST_POINTS, MOST_VALUES // max(size, 1)))


def _check_name(name: str) -> str:
    if not isinstance(name, str) or not name or name.endswith(STEPS) or name == "__metadata__":
        raise SelectionError(f"name: expected a non-empty string that does not end in {STEPS!r}, got {name!r}.")
    return name


def _scalar(name: str, value: float | Tensor) -> Tensor:
    if isinstance(value, Tensor):
        if is_sharded(value):
            raise SelectionError(f"{name}: sharded over processes. Pass `{name}.full_tensor()`.")
        if value.numel() != 1:
            raise ShapeError(f"{name}: expected a scalar, got shape {tuple(value.shape)}. Pass its mean or norm.")
        return value.detach().clone().reshape(())
    try:
        return torch.tensor(float(value), dtype=torch.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {value!r}.") from None


def _is_rank_0() -> bool:
    return not (
        torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank()
    )
