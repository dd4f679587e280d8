"""A file from which training goes on, bit for bit, after it was killed at any moment.

One safetensors file: what learns, its average and the best of it, the optimizer's state and the random generators as
tensors; the rest as JSON in the header. It is written into a folder of its own beside its name, then renamed, so it is
whole or the one before; a process killed while it writes leaves nothing but that folder.
What training can make again from its arguments (the frozen table, the numbers of the sentences) is not in it; instead
it holds what those arguments were, so that it is not continued with others.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from frostline.errors import RunFolderError
from frostline.tagger.saved import PART
from frostline.tagger.training.loop import Fit

_KEY = "frostline training"


class Checkpoint:
    """The file of one training.

    Args:
        path: Where it is; folders above it are made when it is first written.
        made_from: What was given to the training, as JSON takes it: a checkpoint of another is refused.
        every: Seconds between two writings.

    Cost: a writing is one copy of what learns, four times over.
    """

    def __init__(self, path: str | os.PathLike[str], made_from: Mapping[str, Any], every: float) -> None:
        self._path = Path(path)
        self._made_from = dict(made_from)
        self._every = every
        self._due = time.monotonic() + every

    def write(self, fit: Fit) -> None:
        """Write the state of `fit`, if it is time.

        Raises:
            RunFolderError: The disk refuses.
        """
        if time.monotonic() < self._due:
            return
        header = {_KEY: json.dumps({"made_from": self._made_from, "numbers": fit.numbers()})}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=f"{self._path.name}.", suffix=PART, dir=self._path.parent) as own:
                written = Path(own) / self._path.name
                save_file({name: value.contiguous() for name, value in fit.tensors().items()}, written, header)
                written.replace(self._path)
        except (OSError, SafetensorError) as error:
            raise RunFolderError(f"{self._path}: cannot be written: {error}. Make room, or name another.") from None
        self._due = time.monotonic() + self._every

    def read(self, fit: Fit) -> None:
        """Put `fit` into the state that was written last.

        Raises:
            RunFolderError: No such file, a damaged one, or one of a training that was given something else.
        """
        try:
            with safe_open(self._path, framework="pt") as file:
                held = json.loads((file.metadata() or {})[_KEY])
            made_from, numbers = dict(held["made_from"]), held["numbers"]
            tensors = load_file(self._path)
        except FileNotFoundError:
            raise RunFolderError(f"{self._path}: no such file, so nothing to resume. Train from the start.") from None
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise self._damaged(error) from None
        for name, value in self._made_from.items():
            if made_from.get(name) != value:
                raise RunFolderError(
                    f"{self._path}: written by a training with {name} {made_from.get(name)!r}, and here it is "
                    f"{value!r}. Pass the same, or train from the start."
                )
        try:
            fit.restore(tensors, numbers)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> RunFolderError:
        return RunFolderError(f"{self._path}: damaged: {' '.join(str(error).split())}. Train from the start.")


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
