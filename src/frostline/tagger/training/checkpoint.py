"""A file from which training resumes, bit for bit, after it was killed at any moment.

One safetensors file: what learns, its average and its best values, the optimizer's state and the random generators as
tensors; the rest as JSON in the header. It is replaced atomically, so it is always whole. What training can compute
again from its arguments (the frozen table, the encoded sentences) is not in it; instead it records the arguments, so
that a run is never resumed with others.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from frostline.errors import RunFolderError
from frostline.files import replacing
from frostline.tagger.training.loop import TrainingLoop

_KEY = "frostline training"


class Checkpoint:
    """The checkpoint file of one training run.

    Args:
        path: The file; folders above it are made when it is first written.
        arguments: The arguments of the run, as plain values for JSON: a checkpoint of other arguments raises an error.
        every: Seconds between two writes.

    Cost: each write copies what learns four times: value, average and two moments; and once more for the best epoch.
    """

    def __init__(self, path: str | os.PathLike[str], arguments: Mapping[str, Any], every: float) -> None:
        self._path = Path(path)
        self._arguments = dict(arguments)
        self._every = every
        self._due = time.monotonic() + every

    def write(self, loop: TrainingLoop, now: bool = False) -> None:
        """Write the state of `loop`, if it is time or `now`.

        Raises:
            RunFolderError: The file cannot be written.
        """
        if time.monotonic() < self._due and not now:
            return
        self._due = time.monotonic() + self._every
        header = {_KEY: json.dumps({"arguments": self._arguments, "progress": loop.progress()})}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path) as unfinished:
                save_file({name: value.contiguous() for name, value in loop.tensors().items()}, unfinished, header)
        except (OSError, SafetensorError) as error:
            raise RunFolderError(f"{self._path}: cannot be written: {error}. Make room, or name another.") from None

    def read(self, loop: TrainingLoop, path: str | os.PathLike[str] | None = None) -> None:
        """Restore `loop` to the state that was written last, here or to another `path`.

        Raises:
            RunFolderError: The file is missing, damaged, or of a training with other arguments.
        """
        path = self._path if path is None else Path(path)
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})[_KEY])
            arguments, progress = dict(header["arguments"]), header["progress"]
            tensors = load_file(path)
        except FileNotFoundError:
            raise RunFolderError(f"{path}: no such file, so nothing to resume. Train from the start.") from None
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise _damaged(path, error) from None
        for name, value in self._arguments.items():
            if arguments.get(name) != value:
                raise RunFolderError(
                    f"{path}: written by a training with {name} {arguments.get(name)!r}, and here it is "
                    f"{value!r}. Pass the same, or train from the start."
                )
        try:
            loop.restore(tensors, progress)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> RunFolderError:
    return RunFolderError(f"{path}: damaged: {' '.join(str(error).split())}. Train from the start.")


def digest(parts: Iterable[Any]) -> str:
    """Return a short text that differs where `parts` do: bytes as they are, anything else as JSON.

    Example:
        >>> digest([["a"], b"b"]) == digest([["a"], b"b"]), digest([["a"]]) == digest([["b"]])
        (True, False)
    """
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part if isinstance(part, bytes | memoryview) else json.dumps(part).encode())
        found.update(b"\0")
    return found.hexdigest()
