"""The settings of a training run, with word2vec's own names and defaults."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

_RANGES: dict[str, tuple[int, int]] = {
    "dim": (1, 10_000),
    "window": (1, 100),
    "negatives": (1, 100),
    "epochs": (1, 10_000),
    "min_count": (1, 2**31 - 1),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True)
class Settings:
    """How word vectors are trained. Vectors depend on these and on the text alone, not on threads or machine.

    Attributes:
        dim: Dimension of a vector.
        window: Words on each side that are context at most; each word draws its own width, 1 to this.
        negatives: Words that are drawn for each target, in proportion to the power 0.75 of their counts.
        epochs: Passes over the text.
        alpha: Learning rate at the start, falling linearly to `min_alpha`. None: 0.05 for CBOW, 0.025 for skip-gram.
        min_alpha: Learning rate at the end.
        min_count: Words that are rarer are left out, as if they were not in the text.
        sample: Subsampling: of a word whose share of the text is f, the part (sqrt(f / sample) + 1) * sample / f is
            read. 0: everything is.
        seed: Chooses all random numbers.
        skip_gram: Each word of the context predicts the word alone; False: their mean does (CBOW).
        softmax: Predict among all words, with the full softmax, for vocabularies of some thousand words; False: tell
            the word from `negatives`.
        dtype: "float32" or "float64".

    Raises:
        ValueError: A setting is out of range.

    Example:
        >>> Settings(window=0)
        Traceback (most recent call last):
        ValueError: window: 0 is out of range. Pass a whole number from 1 to 100.
    """

    dim: int = 100
    window: int = 5
    negatives: int = 5
    epochs: int = 5
    alpha: float | None = None
    min_alpha: float = 1e-4
    min_count: int = 5
    sample: float = 1e-3
    seed: int = 0
    skip_gram: bool = False
    softmax: bool = False
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            if type(value := getattr(self, name)) is not int or not least <= value <= most:
                raise ValueError(f"{name}: {value} is out of range. Pass a whole number from {least} to {most}.")
        if not 0 < self.rate <= 10:
            raise ValueError(f"alpha: {self.alpha} is out of range. Pass a number above 0, at most 10.")
        if not 0 <= self.min_alpha <= self.rate:
            raise ValueError(
                f"min_alpha: {self.min_alpha} is out of range. Pass a number from 0 to alpha, {self.rate}."
            )
        if not 0 <= self.sample < 1:
            raise ValueError(f"sample: {self.sample} is out of range. Pass 0, or a small number such as 1e-3.")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype: {self.dtype!r} is not float32 or float64.")

    @property
    def rate(self) -> float:
        """The learning rate at the start."""
        if self.alpha is not None:
            return self.alpha
        return 0.025 if self.skip_gram else 0.05

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values that `json.dumps` takes."""
        return asdict(self)
