"""Sizes and rates of a tagger and its training."""

from __future__ import annotations

from dataclasses import dataclass

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
