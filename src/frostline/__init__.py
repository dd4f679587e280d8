"""Choose what learns: in any PyTorch model, name the tensors, the rows or the single entries that may learn.

Everything else keeps every bit, under every optimizer. Names load on first use, so that `import frostline` and
`frostline --help` stay quick and no extra is ever imported for nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frostline import adversarial, optim, probe, tagger, vectors
    from frostline.errors import (
        DataFileError,
        FileError,
        FrostlineError,
        LearnedFileError,
        MissingExtraError,
        ModelFolderError,
        PartialTensorError,
        PatternError,
        ProbeError,
        RowError,
        RunFolderError,
        SelectionError,
        ShapeError,
        StaleOptimizerError,
        VectorFileError,
    )
    from frostline.gates import scale_gradient, stop_gradient
    from frostline.optim import clip_grad_norm_
    from frostline.partial import (
        PartialTensor,
        Plan,
        entries,
        everything,
        load_learned,
        mapped_embedding,
        merge,
        nothing,
        rows,
        save_learned,
        train_only,
    )
    from frostline.probe import Explanation, Recorder, Trial, explain, gradients, trial_step
    from frostline.tokens import add_tokens

__version__ = "0.1.0"

_ROOMS = {
    "adversarial": [],
    "errors": [
        "DataFileError",
        "FileError",
        "FrostlineError",
        "LearnedFileError",
        "MissingExtraError",
        "ModelFolderError",
        "PartialTensorError",
        "PatternError",
        "ProbeError",
        "RowError",
        "RunFolderError",
        "SelectionError",
        "ShapeError",
        "StaleOptimizerError",
        "VectorFileError",
    ],
    "gates": ["scale_gradient", "stop_gradient"],
    "optim": ["clip_grad_norm_"],
    "partial": [
        "PartialTensor",
        "Plan",
        "entries",
        "everything",
        "load_learned",
        "mapped_embedding",
        "merge",
        "nothing",
        "rows",
        "save_learned",
        "train_only",
    ],
    "probe": ["Explanation", "Recorder", "Trial", "explain", "gradients", "trial_step"],
    "tagger": [],
    "tokens": ["add_tokens"],
    "vectors": [],
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "DataFileError",
    "Explanation",
    "FileError",
    "FrostlineError",
    "LearnedFileError",
    "MissingExtraError",
    "ModelFolderError",
    "PartialTensor",
    "PartialTensorError",
    "PatternError",
    "Plan",
    "ProbeError",
    "Recorder",
    "RowError",
    "RunFolderError",
    "SelectionError",
    "ShapeError",
    "StaleOptimizerError",
    "Trial",
    "VectorFileError",
    "add_tokens",
    "adversarial",
    "clip_grad_norm_",
    "entries",
    "everything",
    "explain",
    "gradients",
    "load_learned",
    "mapped_embedding",
    "merge",
    "nothing",
    "optim",
    "probe",
    "rows",
    "save_learned",
    "scale_gradient",
    "stop_gradient",
    "tagger",
    "train_only",
    "trial_step",
    "vectors",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"frostline.{_HOME[name]}"), name)
    if name in _ROOMS:
        return import_module(f"frostline.{name}")
    raise AttributeError(f"module 'frostline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
