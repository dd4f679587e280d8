"""Every error that frostline raises on purpose.

FrostlineError
├── SelectionError        ValueError    an invalid selection or plan
│   ├── PatternError                    a name or pattern that matches no parameter, or two that contradict each other
│   ├── RowError                        row ids out of range, repeated, or not integers
│   └── ShapeError                      a mask or tensor of the wrong shape
├── PartialTensorError    RuntimeError  an operation that would be silently wrong on a partial tensor
├── StaleOptimizerError   RuntimeError  an optimizer that was made for an earlier plan
├── ProbeError            RuntimeError  a pass that cannot be observed without side effects, or that has no gradient
├── FileError             ValueError    a file that cannot be read or written
│   ├── LearnedFileError                a file of learned values that does not match the model
│   ├── CheckpointError                 a checkpoint that cannot be read, or changes that do not follow on it
│   ├── VectorFileError                 a file of word vectors
│   ├── DataFileError                   a file of labelled text
│   ├── ModelFolderError                a folder of a saved tagger
│   └── RunFolderError                  a folder that a training run has written
└── MissingExtraError     ImportError   a part of frostline whose extra is not installed

Each class is also the builtin in the middle column, so code that does not know frostline can catch it.
"""

from __future__ import annotations


class FrostlineError(Exception):
    """Base of every error that frostline raises on purpose."""


class SelectionError(FrostlineError, ValueError):
    """An invalid selection or plan."""


class PatternError(SelectionError):
    """A name or pattern that matches no parameter, or two exact names that contradict each other."""


class RowError(SelectionError):
    """Row ids that are out of range, repeated, or not integers."""


class ShapeError(SelectionError):
    """A mask or tensor of the wrong shape."""


class PartialTensorError(FrostlineError, RuntimeError):
    """An operation that would be silently wrong on a partial tensor."""


class StaleOptimizerError(FrostlineError, RuntimeError):
    """An optimizer that was made before the current plan, and does not hold what learns now."""


class ProbeError(FrostlineError, RuntimeError):
    """A forward or backward pass that cannot be observed without side effects, or that has no gradient."""


class FileError(FrostlineError, ValueError):
    """A file that cannot be read or written; the message names its path and line."""


class LearnedFileError(FileError):
    """A file of learned values that is damaged, cannot be written or does not match the model."""


class CheckpointError(FileError):
    """A checkpoint that cannot be read or compared, or a file of changes that does not follow on a state."""


class VectorFileError(FileError):
    """A file of word vectors that cannot be read."""


class DataFileError(FileError):
    """A file of labelled text that cannot be read."""


class ModelFolderError(FileError):
    """A folder that does not hold a complete saved tagger."""


class RunFolderError(FileError):
    """A folder that is not a run folder, or a file in one that is damaged or does not match the others."""


class MissingExtraError(FrostlineError, ImportError):
    """A part of frostline whose extra is not installed; the message says what to type."""
