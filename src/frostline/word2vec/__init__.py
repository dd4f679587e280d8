"""Word vectors by word2vec, of which chosen words learn: the same bits on any number of threads.

    text_to_vectors.py    `train`: from a text to vectors, in a run folder; resuming
    corpus.py             a text as a mapped file of ids, written with encode.py (encoder.cpp)
    start.py              the tables to start from, and which of their rows learn
    problem.py            what a run trains on
    step.py               trains, by kernel.cpp or by reference.py, in plain torch
    sampling.py           random numbers without a state
    training.py           a run, as callbacks see it; checkpoint.py writes it, run_folder.py for `frostline report`
    modules.py            CBOW and SkipGram for autograd; losses.py: NCE, sampled softmax
    output.py             files of vectors; saved.py: models

Names load on first use: training itself does not need torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frostline.word2vec.losses import nce_loss, sampled_softmax_loss
    from frostline.word2vec.modules import CBOW, SkipGram
    from frostline.word2vec.saved import load_model
    from frostline.word2vec.settings import Settings
    from frostline.word2vec.text_to_vectors import train
    from frostline.word2vec.training import Epoch, Examples, Training

__all__ = [
    "CBOW",
    "Epoch",
    "Examples",
    "Settings",
    "SkipGram",
    "Training",
    "load_model",
    "nce_loss",
    "sampled_softmax_loss",
    "train",
]

_HOME = {
    "CBOW": "modules",
    "Epoch": "training",
    "Examples": "training",
    "Settings": "settings",
    "SkipGram": "modules",
    "Training": "training",
    "load_model": "saved",
    "nce_loss": "losses",
    "sampled_softmax_loss": "losses",
    "train": "text_to_vectors",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"frostline.word2vec.{_HOME[name]}"), name)
    raise AttributeError(f"module 'frostline.word2vec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
