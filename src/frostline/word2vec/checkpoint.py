"""A file from which a run resumes, bit for bit, after it was killed at any moment.

One safetensors file: the rows that learn, and in the header where the run is and its arguments, as JSON. It is replaced
atomically, so it is always whole. Rows that do not learn are read again from where they came.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from frostline.errors import RunFolderError
from frostline.files import replacing
from frostline.word2vec.compiled import Position
from frostline.word2vec.training import Epoch, Training, learned_rows

CHECKPOINT = "word2vec.checkpoint"
_KEY = "frostline word2vec"
_SHARE = 0.05  # of the time that writing may take


class Checkpoint:
    """The checkpoint of one run.

    Args:
        folder: Where it is written.
        arguments: What the run depends on, as plain values; a checkpoint of other arguments is refused.
        every: Seconds between two writes.
    """

    def __init__(self, folder: Path, arguments: Mapping[str, Any], every: float) -> None:
        self.path = folder / CHECKPOINT
        self._arguments: dict[str, Any] = json.loads(json.dumps(dict(arguments)))
        self._every = every
        self._due = time.monotonic() + every

    def write_if_due(self, training: Training) -> None:
        """Write the state of the run, if it is time."""
        if time.monotonic() >= self._due:
            self.write(training)

    def write(self, training: Training) -> None:
        """Write the state of the run.

        Raises:
            RunFolderError: The file cannot be written.
        """
        began = time.monotonic()
        at = {name: getattr(training.at, name) for name, *_ in Position._fields_}
        state = {"at": at, "history": training.history, "seconds": training.seconds}
        tensors = {}
        for name, table, index in learned_rows(training):
            tensors[name] = table if len(index) == len(table) else table[index]
        try:
            with replacing(self.path) as unfinished:
                save_file(tensors, unfinished, {_KEY: json.dumps({"arguments": self._arguments, "state": state})})
        except (OSError, SafetensorError) as error:
            raise RunFolderError(f"{self.path}: cannot be written: {error}. Make room, or name another.") from None
        now = time.monotonic()
        self._due = now + max(self._every, (now - began) / _SHARE)

    def check(self) -> bool:
        """Return whether there is a checkpoint of these arguments.

        Raises:
            RunFolderError: There is one of others, or a damaged one.
        """
        if not self.path.exists():
            return False
        found = self._header()["arguments"]
        for name, value in self._arguments.items():
            if found.get(name) != value:
                raise RunFolderError(
                    f"{self.path}: written by a run with {name} {found.get(name)!r}, and here it is {value!r}. Pass "
                    "the same, or train from the start."
                )
        return True

    def restore(self, training: Training) -> None:
        """Bring a run to the state that was written last.

        Raises:
            RunFolderError: The file is damaged.
        """
        state = self._header()["state"]
        try:
            with safe_open(self.path, framework="np") as file:
                found = {name: file.get_tensor(name) for name, _, _ in learned_rows(training)}
            for name, table, index in learned_rows(training):
                if found[name].shape != (len(index), table.shape[1]) or found[name].dtype != table.dtype:
                    raise ValueError(f"{name} has shape {found[name].shape}")
            at = Position(**state["at"])
            history = [Epoch(*epoch) for epoch in state["history"]]
            seconds = float(state["seconds"])
            if not 0 <= at.token <= len(training.problem.corpus.ids) or at.words_done > training.total_words:
                raise ValueError("it is behind the end of the text")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(error) from None
        for name, table, index in learned_rows(training):
            table[index] = found[name]
        training.at, training.history, training.seconds = at, history, seconds

    def _header(self) -> dict[str, Any]:
        try:
            with safe_open(self.path, framework="np") as file:
                header: dict[str, Any] = json.loads((file.metadata() or {})[_KEY])
            return {"arguments": dict(header["arguments"]), "state": dict(header["state"])}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> RunFolderError:
        return RunFolderError(f"{self.path}: damaged: {' '.join(str(error).split())}. Train from the start.")
