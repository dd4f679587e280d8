"""What a tagger is trained with: sizes and rates, and the device and precision to compute in.

All random numbers are drawn on the CPU and then moved: a seed draws the same on every device, and resuming needs the
state of the CPU's generator alone. Saved files hold float32 tensors of the CPU, whatever the device.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from textwrap import shorten

import torch

from frostline.errors import FrostlineError

_LEAST = {"hidden": 1, "dimension": 1, "batch_size": 1, "char_filters": 0} | dict.fromkeys(
    ("shape_width", "learning_rate", "weight_decay", "max_grad_norm", "unk_dropout", "adversarial"), 0
)
_MOST = {"hidden": 16384, "dimension": 16384, "shape_width": 1024, "char_filters": 1024, "batch_size": 1 << 20}
_FRACTIONS = ("dropout", "dropout_input", "dropout_output", "dropout_state", "ema_decay", "final_rate")
_REASON_LENGTH = 100  # characters of torch's message that are quoted


@dataclass(frozen=True)
class TaggerConfig:
    """Sizes and rates; the defaults suit a few thousand short sentences.

    Raises:
        ValueError: A size or a rate is out of range.

    Example:
        >>> TaggerConfig(batch_size=0)
        Traceback (most recent call last):
        ValueError: batch_size: 0 is out of range. Pass 1 or more.
    """

    hidden: int = 200  # units of the LSTM in each direction
    dimension: int = 100  # numbers of a word's vector, where `train` gets no vectors
    shape_width: int = 16  # width of the embedding of a word's shape
    char_filters: int = 0  # filters of the convolution over a word's bytes; 0: no convolution
    dropout: float = 0.2  # of the LSTM's inputs and outputs, one mask for all tokens of a sentence
    dropout_input: float | None = None  # of the inputs, in place of `dropout`
    dropout_output: float | None = None  # of the outputs, in place of `dropout`
    dropout_state: float = 0.0  # of the recurrent weights, one mask for a batch
    crf: bool = True  # a CRF scores the tags of a sentence together; False: a softmax for each token
    batch_size: int = 16
    learning_rate: float = 3e-3  # at the start; falls linearly
    final_rate: float = 0.1  # to this fraction of it
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    unk_dropout: float = 0.5  # a missing word seen n times is read as <unk> with probability u / (u + n)
    o_bias: float = 0.0  # subtracted from the O logit after training: higher recall, lower precision
    ema_decay: float = 0.998  # of the exponential moving average, which is evaluated and saved; 0: no average
    forget_bias: float | None = None  # initial bias of the forget gate; if given, one bias a gate, as in TensorFlow
    adversarial: float = 0.0  # epsilon of the FGM passes that are trained on as well, in the unit of vectors; 0: none
    by_sentence: bool = False  # the loss is the mean over sentences of their means; False: the mean over tokens

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if not (value := getattr(self, name)) >= least:  # "not >=" instead of "<": NaN is refused as well
                raise ValueError(f"{name}: {value} is out of range. Pass {least} or more.")
        for name, most in _MOST.items():
            if (value := getattr(self, name)) > most:
                raise ValueError(f"{name}: {value} is out of range. Pass {most} or less.")
        for name in _FRACTIONS:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}: {value} is out of range. Pass 0 to 1.")

    @property
    def input_and_output_dropout(self) -> tuple[float, float]:
        """The dropout of the LSTM's inputs and that of its outputs."""
        first, second = (self.dropout if own is None else own for own in (self.dropout_input, self.dropout_output))
        return first, second


ORIGINAL = TaggerConfig(
    shape_width=0,
    crf=False,
    final_rate=1.0,
    weight_decay=0.0,
    unk_dropout=0.0,
    o_bias=0.0,
    ema_decay=0.0,
    forget_bias=3.0,
    by_sentence=True,
)
"""The TensorFlow tagger that this one comes from: word vectors alone, a softmax over each token's tags."""


def check_device(name: str | torch.device) -> torch.device:
    """Return the device of this name, after computing on it once.

    Raises:
        FrostlineError: The device is not available.

    Example:
        >>> check_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # each backend has its own way to be missing
        missing = isinstance(error, NotImplementedError)  # torch's message then lists every backend, over a page
        why = "torch was built without it" if missing else shorten(str(error), _REASON_LENGTH, placeholder=" ...")
        available = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise FrostlineError(
            f"device: {str(name)!r} cannot be used here ({why}). Pass one that can: {', '.join(available)}."
        ) from None
    return device


def precision(device: torch.device, bf16: bool) -> AbstractContextManager[object]:
    """Return the context to compute in: autocast to bfloat16 if `bf16`, else one that does nothing.

    Weights, gradients and the optimizer's state stay float32 in both.

    Raises:
        FrostlineError: The device does not support bfloat16.
    """
    if not bf16:
        return nullcontext()
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise FrostlineError(f"bf16: {device} does not support bfloat16. Leave it out.")
    return torch.autocast(device.type, torch.bfloat16)


def auxiliary_fraction(epochs_done: int, epochs: int) -> float:
    """Return the fraction of an auxiliary corpus that the next epoch reads: all at first, nothing at the end.

    So the last batches that the shared layers learn from are those of the main corpus.

    Example:
        >>> [auxiliary_fraction(done, epochs=5) for done in range(5)]
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    return 1 - epochs_done / max(1, epochs - 1)
