"""A trained model in one safetensors file: both tables, so that training can go on from it.

Letters used for shapes in this file:
    V  words          T  words that have an output row, the first ones          D  dimension

    input   (V, D)    output  (T, D)    words  U8, the UTF-8 of all words, a line feed between two
and its metadata: {"format": "frostline.word2vec", "version": "1", "model": "CBOW" or "SkipGram"}.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from frostline.errors import VectorFileError
from frostline.files import replacing
from frostline.word2vec.problem import Table

if TYPE_CHECKING:
    from frostline.word2vec.modules import CBOW, SkipGram

_FORMAT, _VERSION = "frostline.word2vec", "1"


def save_model(path: Path, words: Sequence[str], input: Table, output: Table, skip_gram: bool) -> None:
    """Write a model, whole or not at all; OSError if it cannot be written."""
    text = np.frombuffer("\n".join(words).encode("utf-8", "surrogatepass"), dtype=np.uint8)
    tensors = {"input": np.ascontiguousarray(input), "output": np.ascontiguousarray(output), "words": text}
    about = {"format": _FORMAT, "version": _VERSION, "model": "SkipGram" if skip_gram else "CBOW"}
    with replacing(path) as unfinished:
        save_file(tensors, unfinished, about)


def is_model(path: Path) -> bool:
    """Return whether a file is a model, not vectors."""
    try:
        with safe_open(path, framework="np") as file:
            return (file.metadata() or {}).get("format") == _FORMAT
    except (OSError, SafetensorError):
        return False


def load_model(path: str | os.PathLike[str]) -> CBOW | SkipGram:
    """Return a model that `train` has saved.

    Args:
        path: The file `model.safetensors` of a run folder.

    Raises:
        VectorFileError: The file cannot be read, is damaged or is not a model.

    Cost: one copy of both tables.
    """
    import torch

    from frostline.word2vec.modules import CBOW, SkipGram

    try:
        with safe_open(path, framework="np") as file:
            about = file.metadata() or {}
            if about.get("format") != _FORMAT or about.get("version") != _VERSION:
                raise ValueError(f"its format is {about.get('format')!r}, not {_FORMAT!r} {_VERSION}")
            input, output, text = (file.get_tensor(name) for name in ("input", "output", "words"))
        words = text.tobytes().decode("utf-8", "surrogatepass").split("\n")
        if input.ndim != 2 or output.ndim != 2 or input.shape[1] != output.shape[1]:
            raise ValueError(f"its tables have the shapes {input.shape} and {output.shape}")
        if len(words) != len(input) or len(set(words)) != len(words) or not len(output) <= len(input):
            raise ValueError(f"it has {len(words):,} words for {len(input):,} rows")
        if input.dtype != output.dtype or input.dtype.name not in ("float32", "float64"):
            raise ValueError(f"its tables hold {input.dtype} and {output.dtype}")
        if not (np.isfinite(input).all() and np.isfinite(output).all()):
            raise ValueError("a value is not finite")
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise VectorFileError(f"{path}: no word2vec model: {' '.join(str(error).split())}. Train it again.") from None
    kind = SkipGram if about.get("model") == "SkipGram" else CBOW
    made: CBOW | SkipGram = kind(words, input.shape[1], len(output))
    made.to(getattr(torch, input.dtype.name))
    with torch.no_grad():
        made.input.weight.copy_(torch.from_numpy(input))
        made.output.weight.copy_(torch.from_numpy(output))
    return made
