"""Sizes and rates of a tagger and its training.

Where a tagger computes, and how finely.

Everything is drawn on the CPU and then moved: the same seed draws the same on every device, and what training goes on
from needs the generator of the CPU alone. Files are written as on the CPU: float32, wherever they came from.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from textwrap import shorten

import torch

from frostline.errors import FrostlineError

_LEAST = {"hidden": 1, "batch": 1} | dict.fromkeys(
    ("shape_width", "characters", "learning_rate", "decay", "clip", "hide"), 0
)
_SHARES = ("dropout", "recurrent_dropout", "average")


@dataclass(frozen=True)
class Options:
    """Sizes and rates; the defaults suit a few thousand short sentences.

    Raises:
        ValueError: a size or a rate out of range.

    Example:
        >>> Options(batch=0)
        Traceback (most recent call last):
        ValueError: batch: 0 is out of range. Pass 1 or more.
    """

    hidden: int = 200
    shape_width: int = 16
    characters: int = 0  # filters over the bytes of a word; 0: none
    dropout: float = 0.2  # of the LSTM's inputs and outputs, one mask for all tokens of a sentence
    recurrent_dropout: float = 0.0  # of the weights from one state to the next, one mask for a batch
    chain: bool = True  # a CRF judges the tags of a sentence as a chain; False: each token's alone
    batch: int = 16
    learning_rate: float = 3e-3  # at the start; falls evenly to a tenth
    decay: float = 1e-2
    clip: float = 1.0
    hide: float = 0.5  # a missing word seen n times is read as <unk> with probability hide / (hide + n)
    lean: float = 0.75  # taken off the score of O once trained: more entities are found, and more that are none
    average: float = 0.998  # the weights kept are a running mean over steps; 0: those of the last step
    forget_bias: float | None = None  # of the LSTM at the start, which then has one bias as TensorFlow's; None: torch's
    by_sentence: bool = False  # every sentence counts the same in the loss, however long; False: every token

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if not (value := getattr(self, name)) >= least:  # nor is NaN
                raise ValueError(f"{name}: {value} is out of range. Pass {least} or more.")
        for name in _SHARES:
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name}: {value} is out of range. Pass 0 to 1.")


ORIGINAL = Options(
    shape_width=0, chain=False, decay=0.0, hide=0.0, lean=0.0, average=0.0, forget_bias=3.0, by_sentence=True
)
"""The form of the TensorFlow tagger this one comes from: word vectors alone, a softmax over each token's tags."""


_REASON = 100  # characters of what torch says


def usable(name: str | torch.device) -> torch.device:
    """Return the device of this name, having used it.

    Raises:
        FrostlineError: There is no such device here.

    Example:
        >>> usable("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # each backend has its own way to be missing
        missing = isinstance(error, NotImplementedError)  # which torch says in a page of names
        why = "torch was built without it" if missing else shorten(str(error), _REASON, placeholder=" ...")
        here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise FrostlineError(
            f"device: {str(name)!r} cannot be used here ({why}). Pass one that can: {', '.join(here)}."
        ) from None
    return device


def precision(device: torch.device, bf16: bool) -> AbstractContextManager[object]:
    """Return what to compute in: the products of matrices in bfloat16 if `bf16`, else everything in float32.

    Weights, gradients and the optimizer's state stay float32 in both.

    Raises:
        FrostlineError: The device has no bfloat16.
    """
    if not bf16:
        return nullcontext()
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise FrostlineError(f"bf16: {device} has no bfloat16. Leave it out.")
    return torch.autocast(device.type, torch.bfloat16)


def beside(done: int, epochs: int) -> float:
    """Return which part of the other tasks the epoch after `done` of `epochs` reads: all at first, none at the end.

    So the layers that the tasks share end with the task that counts.

    Example:
        >>> [beside(done, epochs=5) for done in range(5)]
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    return 1 - done / max(1, epochs - 1)
