"""One tagger, three regimes: which rows of the table of word vectors may learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from frostline import tagger
from frostline.demo.corpus import Parts
from frostline.tagger.data.vocabulary import FIRST
from frostline.tagger.training.initial_table import Audit, compare
from frostline.vectors import Vectors


class Regime(NamedTuple):
    """One choice of what learns in the table of word vectors."""

    learn: Literal["missing", "none", "all"]
    name: str
    meaning: str


REGIMES = (
    Regime("missing", "missing words learn", "known words keep every bit; words without a vector learn theirs"),
    Regime("none", "all words frozen", "words without a vector stay at their random start"),
    Regime("all", "all words learn", "the known vectors are changed as well"),
)


@dataclass(frozen=True)
class Outcome:
    """What one regime gave: a run, its F1 on test (0 to 1) and its seconds for each seed.

    `known` compares the numbers of all known words, bit by bit, after the first run, whether they were frozen or not.
    """

    runs: list[tagger.TrainingRun]
    test_f1: list[float]
    seconds: list[float]
    known: Audit

    @property
    def learned(self) -> int:
        """How many numbers of the table learned."""
        return sum(line.learned for line in self.runs[0].plan.lines if line.name == "embed.weight")


def train_all(
    parts: Parts, vectors: Vectors, epochs: int, seeds: Sequence[int], watch: Callable[[str], tagger.Watcher]
) -> dict[str, Outcome]:
    """Train the tagger once for each regime and seed; everything but `learn` and the seed is equal.

    Args:
        parts: Sentences to learn from, to choose the epoch, and to report.
        vectors: Pretrained words.
        epochs: Passes over the training sentences, 1 or more.
        seeds: One run for each.
        watch: Given the name of a run, returns who watches it.

    Returns:
        The outcome of each regime, keyed by its `learn`. The regimes take turns, so that a slow moment of the machine
        does not hit one of them alone.
    """
    options = tagger.Options(hidden=64, dropout=0.2, learning_rate=5e-3, chain=False, lean=0.0)
    runs: dict[str, list[tagger.TrainingRun]] = {regime.learn: [] for regime in REGIMES}
    for seed in seeds:
        for learn, name, _ in REGIMES:
            runs[learn].append(
                tagger.train(
                    parts.train,
                    parts.dev,
                    vectors,
                    learn=learn,
                    epochs=epochs,
                    seed=seed,
                    options=options,
                    watch=watch(f"{name}, seed {seed}"),
                )
            )
    return {learn: _outcome(of, parts) for learn, of in runs.items()}


def _outcome(runs: list[tagger.TrainingRun], parts: Parts) -> Outcome:
    own = torch.zeros(len(runs[0].before), dtype=torch.bool)
    own[: FIRST + runs[0].tagger.vocabulary.missing] = True  # padding, <unk>, missing words: all but the known ones
    return Outcome(
        runs,
        [run.tagger.evaluate(parts.test).f1 for run in runs],
        [sum(epoch.seconds for epoch in run.history) for run in runs],
        compare(runs[0].before.rows, runs[0].tagger.model.embed, own),
    )


def end_of(run: tagger.TrainingRun) -> Tensor:
    """A copy of the table of word vectors after training, shape (V, D)."""
    return run.tagger.model.embed.weight.detach().clone()


def verdict(f1: Mapping[str, Sequence[float]]) -> str:
    """Name the regime with the highest mean F1, and say whether the seeds agree on it.

    Example:
        >>> verdict({"a": [0.5, 0.6], "b": [0.52, 0.54], "c": [0.1, 0.2]})
        'Highest mean: "a", 2.0 points before "b"; the seeds of the two overlap, so this does not tell them apart.'
    """
    first, second = sorted(f1, key=lambda name: -mean(f1[name]))[:2]
    lead = 100 * (mean(f1[first]) - mean(f1[second]))
    overlap = min(f1[first]) <= max(f1[second])
    says = "the seeds of the two overlap, so this does not tell them apart" if overlap else "no seed says otherwise"
    return f'Highest mean: "{first}", {lead:.1f} points before "{second}"; {says}.'
