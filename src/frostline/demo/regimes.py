"""One tagger trained in three regimes: which rows of the table of word vectors may learn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal, NamedTuple

import torch

from frostline import tagger
from frostline.demo.corpus import Parts
from frostline.tagger.data.vocabulary import FIRST_WORD
from frostline.tagger.training.initial_table import Audit, compare
from frostline.vectors import Vectors


class Regime(NamedTuple):
    """A choice of what learns in the table of word vectors."""

    learn: Literal["missing", "none", "all"]
    name: str
    meaning: str


REGIMES = (
    Regime("missing", "missing words learn", "known words keep every bit; words without a vector learn theirs"),
    Regime("none", "all words frozen", "words without a vector keep their random initial one"),
    Regime("all", "all words learn", "the known vectors are changed as well"),
)


@dataclass(frozen=True)
class Outcome:
    """The result of one regime, with one run for each seed.

    Attributes:
        runs: The training runs.
        test_f1: F1 of each run on the test sentences, 0 to 1.
        seconds: Training time of each run.
        known: All vectors of known words before and after the first run, compared bit by bit, frozen or not.
    """

    runs: list[tagger.TrainingRun]
    test_f1: list[float]
    seconds: list[float]
    known: Audit

    @classmethod
    def from_runs(cls, runs: list[tagger.TrainingRun], parts: Parts) -> Outcome:
        """Evaluate the runs of one regime on the test sentences."""
        unknown = torch.zeros(len(runs[0].initial_table), dtype=torch.bool)
        unknown[: FIRST_WORD + runs[0].tagger.vocabulary.missing] = True  # padding, <unk> and the missing words
        return cls(
            runs,
            [run.tagger.evaluate(parts.test).f1 for run in runs],
            [sum(epoch.seconds for epoch in run.history) for run in runs],
            compare(runs[0].initial_table.rows, runs[0].tagger.model.embed, unknown),
        )

    @property
    def learned(self) -> int:
        """How many parameters of the table learned."""
        return sum(line.learned for line in self.runs[0].plan.lines if line.name == "embed.weight")


def train_all(
    parts: Parts, vectors: Vectors, epochs: int, seeds: Sequence[int]
) -> Iterator[tuple[Regime, int, tagger.TrainingRun]]:
    """Train the tagger once for each regime and seed; only `learn` and the seed differ.

    Args:
        parts: Sentences to train on and to choose the epoch.
        vectors: Pretrained words.
        epochs: Passes over the training sentences, 1 or more.
        seeds: One run for each, 1 or more.

    Yields:
        The regime, the seed and the run when it ends. The regimes take turns, so that a slow moment of the machine
        does not hit one of them alone.
    """
    config = tagger.TaggerConfig(hidden=64, dropout=0.2, learning_rate=5e-3, crf=False, o_bias=0.0)
    for seed in seeds:
        for regime in REGIMES:
            run = tagger.train(
                parts.train, parts.dev, vectors, learn=regime.learn, epochs=epochs, seed=seed, config=config
            )
            yield regime, seed, run


def verdict(f1: Mapping[str, Sequence[float]]) -> str:
    """Return a sentence that names the regime with the highest mean F1, and says whether the seeds agree on it.

    Example:
        >>> verdict({"a": [0.5, 0.6], "b": [0.52, 0.54], "c": [0.1, 0.2]})
        'Highest mean: "a", 2.0 points above "b"; their seeds overlap, so the difference may be chance.'
    """
    first, second = sorted(f1, key=lambda name: -mean(f1[name]))[:2]
    lead = 100 * (mean(f1[first]) - mean(f1[second]))
    overlap = min(f1[first]) <= max(f1[second])
    agreement = "their seeds overlap, so the difference may be chance" if overlap else "every seed agrees"
    return f'Highest mean: "{first}", {lead:.1f} points above "{second}"; {agreement}.'
