"""Every error that frostline raises on purpose.

FrostlineError
├── SelectionError        ValueError    a selection or a plan that cannot be meant
│   ├── PatternError                    a name or pattern that fits no parameter, or two that contradict
│   ├── RowError                        row ids out of range, repeated, or of the wrong kind
│   └── ShapeError                      a mask whose shape does not fit
├── PartialTensorError    RuntimeError  a use that a partial tensor cannot serve without being silently wrong
├── StaleOptimizerError   RuntimeError  an optimizer that no longer drives what learns
├── ProbeError            RuntimeError  a pass that cannot be looked at without changing something, or has no gradient
├── FileError             ValueError    a file that cannot be read as what it should be
│   ├── LearnedFileError                a file of learned values that does not fit the model
│   ├── VectorFileError                 a file of word vectors
│   ├── DataFileError                   a file of labelled text
│   ├── ModelFolderError                a folder that holds a saved tagger
│   └── RunFolderError                  a folder that holds what a training run left behind
└── MissingExtraError     ImportError   a part of frostline whose extra is not installed

Each class is also the builtin in the middle column, so code that knows nothing of frostline can catch it.
"""

from __future__ import annotations


class FrostlineError(Exception):
    """Base of every error that frostline raises on purpose."""


class SelectionError(FrostlineError, ValueError):
    """A selection or a plan that cannot be meant."""


class PatternError(SelectionError):
    """A name or pattern that fits no parameter, or two exact names that contradict each other."""


class RowError(SelectionError):
    """Row ids that are out of range, repeated, or not integers."""


class ShapeError(SelectionError):
    """A mask whose shape does not fit the tensor."""


class PartialTensorError(FrostlineError, RuntimeError):
    """A use that a partial tensor cannot serve without being silently wrong."""


class StaleOptimizerError(FrostlineError, RuntimeError):
    """An optimizer made before the current plan: it no longer drives what learns."""


class ProbeError(FrostlineError, RuntimeError):
    """A pass that cannot be looked at without changing something, or that has no gradient to give."""


class FileError(FrostlineError, ValueError):
    """A file that cannot be read as what it should be; the message names its path and line."""


class LearnedFileError(FileError):
    """A file of learned values that does not fit the model."""


class VectorFileError(FileError):
    """A file of word vectors that cannot be read."""


class DataFileError(FileError):
    """A file of labelled text that cannot be read."""


class ModelFolderError(FileError):
    """A folder that does not hold a complete saved tagger."""


class RunFolderError(FileError):
    """A folder that is no run folder, or a file in one that is damaged or does not fit."""


class MissingExtraError(FrostlineError, ImportError):
    """A part of frostline whose extra is not installed; the message says what to type."""
