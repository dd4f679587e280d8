"""Choose what learns: in any PyTorch model, name the tensors, the rows or the single entries that may learn.

Everything else keeps every bit, under every optimizer. Names load on first use, so that `import frostline` and
`frostline --help` stay quick and no extra is ever imported for nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the table below, for type checkers and editors; a test compares the two
    from frostline import adversarial as adversarial
    from frostline import integrations as integrations
    from frostline import optim as optim
    from frostline import probe as probe
    from frostline import record as record
    from frostline import tagger as tagger
    from frostline import vectors as vectors
    from frostline import word2vec as word2vec
    from frostline.changes import Changes as Changes
    from frostline.changes import apply_changes as apply_changes
    from frostline.changes import digest as digest
    from frostline.errors import CheckpointError as CheckpointError
    from frostline.errors import DataFileError as DataFileError
    from frostline.errors import FileError as FileError
    from frostline.errors import FrostlineError as FrostlineError
    from frostline.errors import LearnedFileError as LearnedFileError
    from frostline.errors import MissingExtraError as MissingExtraError
    from frostline.errors import ModelFolderError as ModelFolderError
    from frostline.errors import PartialTensorError as PartialTensorError
    from frostline.errors import PatternError as PatternError
    from frostline.errors import ProbeError as ProbeError
    from frostline.errors import RowError as RowError
    from frostline.errors import RunFolderError as RunFolderError
    from frostline.errors import SelectionError as SelectionError
    from frostline.errors import ShapeError as ShapeError
    from frostline.errors import StaleOptimizerError as StaleOptimizerError
    from frostline.errors import VectorFileError as VectorFileError
    from frostline.gates import scale_gradient as scale_gradient
    from frostline.gates import stop_gradient as stop_gradient
    from frostline.optim import clip_grad_norm_ as clip_grad_norm_
    from frostline.partial import PartialTensor as PartialTensor
    from frostline.partial import Plan as Plan
    from frostline.partial import entries as entries
    from frostline.partial import everything as everything
    from frostline.partial import load_learned as load_learned
    from frostline.partial import mapped_embedding as mapped_embedding
    from frostline.partial import merge as merge
    from frostline.partial import nothing as nothing
    from frostline.partial import rows as rows
    from frostline.partial import save_learned as save_learned
    from frostline.partial import train_only as train_only
    from frostline.probe import Explanation as Explanation
    from frostline.probe import Trial as Trial
    from frostline.probe import explain as explain
    from frostline.probe import gradients as gradients
    from frostline.probe import mark as mark
    from frostline.probe import trial_step as trial_step
    from frostline.probe import watching as watching
    from frostline.record import Recorder as Recorder
    from frostline.tokens import add_tokens as add_tokens
    from frostline.tokens import export_peft as export_peft

__version__ = "0.2.0"

_NAMES = {  # room: the names of it that `import frostline` offers
    "changes": ("Changes", "apply_changes", "digest"),
    "errors": (
        "CheckpointError",
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
    ),
    "gates": ("scale_gradient", "stop_gradient"),
    "optim": ("clip_grad_norm_",),
    "partial": (
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
    ),
    "probe": ("Explanation", "Trial", "explain", "gradients", "mark", "trial_step", "watching"),
    "record": ("Recorder",),
    "tokens": ("add_tokens", "export_peft"),
}
_ROOMS = (
    "adversarial",
    "integrations",
    "optim",
    "probe",
    "record",
    "tagger",
    "vectors",
    "word2vec",
)  # offered whole: `frostline.vectors`
_HOME = {name: room for room, names in _NAMES.items() for name in names}

__all__ = sorted([*_HOME, *_ROOMS])


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"frostline.{_HOME[name]}"), name)
    if name in _ROOMS:
        return import_module(f"frostline.{name}")
    raise AttributeError(f"module 'frostline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
