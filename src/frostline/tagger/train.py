"""Training: choose which rows learn, step over shuffled batches, keep the epoch that is best on dev, then audit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from frostline import partial
from frostline.errors import DataFileError, VectorFileError
from frostline.tagger.audit import Audit, compare
from frostline.tagger.batches import NO_TAG, Batch, Encoded, encode, pad, shuffled
from frostline.tagger.model import LSTMTagger
from frostline.tagger.tagging import Labelled, Tagger, one_thread
from frostline.tagger.vocabulary import FIRST, PADDING, UNKNOWN, Coverage, Vocabulary, cover, initial_table

if TYPE_CHECKING:
    from frostline.vectors import Vectors

Learn = Literal["missing", "none", "all"]


@dataclass(frozen=True)
class Options:
    """Sizes and rates; the defaults suit a few thousand short sentences."""

    hidden: int = 200
    shape_width: int = 16
    dropout: float = 0.5
    batch: int = 16
    learning_rate: float = 3e-3
    decay: float = 1e-2
    clip: float = 1.0
    hide: float = 0.5  # a missing word seen n times is read as <unk> with probability hide / (hide + n)


@dataclass(frozen=True)
class Epoch:
    """One pass over the training sentences: mean loss of a token, F1 on dev (0 to 1), seconds, tokens trained on."""

    number: int
    loss: float
    dev_f1: float
    seconds: float
    tokens: int


class Watcher:
    """Is told how training goes; every method may be overridden, none must be."""

    def start(self, plan: partial.Plan, coverage: Coverage) -> None:
        """Training is about to begin."""

    def batch(self, tokens: int) -> None:
        """One step was made, over so many tokens."""

    def epoch(self, epoch: Epoch) -> None:
        """One pass over the training sentences ended."""


@dataclass(frozen=True)
class TrainingRun:
    """What training leaves behind; `start` is the table as it was, shape (rows, D)."""

    tagger: Tagger
    plan: partial.Plan
    coverage: Coverage
    history: list[Epoch]
    best: Epoch
    audit: Audit
    start: Tensor


def train(
    train: Sequence[Labelled],
    dev: Sequence[Labelled],
    vectors: Vectors,
    *,
    learn: Learn = "missing",
    epochs: int = 20,
    seed: int = 0,
    options: Options | None = None,
    watch: Watcher | None = None,
) -> TrainingRun:
    """Train a tagger over `vectors`, all of which stay as they are unless `learn` says otherwise.

    Args:
        train: Sentences to learn from: (tokens, tags) pairs, tags in the BIO scheme.
        dev: Sentences that choose the epoch to keep.
        vectors: Pretrained words and their matrix, float32, shape (V, D). Copied, never written to.
        learn: Rows of the table that learn: "missing" (training words without a vector, and <unk>), "none", or "all".
            The rest of the network always learns.
        epochs: Passes over `train`, 1 or more.
        seed: Same seed, same result on the same machine; the global generator is untouched.
        options: Sizes and rates.
        watch: Is told of each step and epoch.

    Returns:
        A `TrainingRun`, its tagger as it was after the epoch with the best F1 on dev (of equals, the lower loss).

    Raises:
        DataFileError: no training or dev sentence, or one with another number of tags than of tokens.
        VectorFileError: no training word has a vector, which is a mismatch and not a small vocabulary.
        ValueError: `epochs` or `learn` out of range.

    Cost: two copies of the table, and of what learns one copy for the best epoch; a step costs nothing of size V
        unless `learn` is "all".
    """
    options, watch = options or Options(), watch or Watcher()
    if epochs < 1:
        raise ValueError(f"epochs: {epochs} is out of range. Pass 1 or more.")
    if learn not in ("missing", "none", "all"):
        raise ValueError(f"learn: {learn!r} is none of 'missing', 'none', 'all'.")
    for name, sentences in (("train", train), ("dev", dev)):
        if not any(tokens for tokens, _ in sentences):
            raise DataFileError(f"{name}: no sentence with a token in it.")
        for number, (tokens, tags) in enumerate(sentences):
            if len(tokens) != len(tags):
                raise DataFileError(f"{name}: sentence {number} has {len(tokens)} tokens and {len(tags)} tags.")
    words = list(vectors.words)
    coverage = cover(chain.from_iterable(tokens for tokens, _ in train), words)
    if coverage.found_words == 0:
        raise VectorFileError(
            f"vectors: none of the {coverage.words:,} training words is among the {len(words):,} words of the vectors. "
            f"Check that they are of the same language and spelling."
        )
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(seed)
        vocabulary = Vocabulary([*coverage.missing, *words], missing=len(coverage.missing))
        table = torch.from_numpy(initial_table(vectors.matrix, vocabulary.missing, np.random.default_rng(seed)))
        names = ["O", *sorted({tag for _, tags in train for tag in tags} - {"O"})]
        model = LSTMTagger(table, len(names), options.hidden, options.shape_width, options.dropout)
        start = table.clone()
        selection = {
            "missing": partial.rows(vocabulary.learned),
            "none": partial.nothing,
            "all": partial.everything,
        }[learn]
        plan = partial.train_only(model, {"*": partial.everything, "embed.weight": selection})
        tagger = Tagger(model, vocabulary, names)
        watch.start(plan, coverage)
        history, best = _fit(tagger, plan, train, dev, epochs, options, watch)
    end = model.embed.weight.detach().clone()
    audit = compare(start, end, _rows_that_learn(learn, vocabulary))
    return TrainingRun(tagger, plan, coverage, history, best, audit, start)


def _fit(
    tagger: Tagger,
    plan: partial.Plan,
    train: Sequence[Labelled],
    dev: Sequence[Labelled],
    epochs: int,
    options: Options,
    watch: Watcher,
) -> tuple[list[Epoch], Epoch]:
    """Train in place; return every epoch and the best one, whose values the model has at the end."""
    model = tagger.model
    numbers = {tag: number for number, tag in enumerate(tagger.tags)}
    sentences = [encode(tokens, tagger.vocabulary, [numbers[tag] for tag in tags]) for tokens, tags in train if tokens]
    lengths = [len(sentence.rows) for sentence in sentences]
    hidden_with = _chance_of_hiding(sentences, tagger.vocabulary, options.hide)
    generator = torch.Generator().manual_seed(torch.initial_seed())
    parameters = plan.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.decay, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=epochs)
    history: list[Epoch] = []
    best_values: list[Tensor] = []
    for number in range(1, epochs + 1):
        began = time.perf_counter()
        loss_sum = torch.zeros(())
        model.train()
        for group in shuffled(lengths, options.batch, generator):
            batch = pad([sentences[i] for i in group])
            hide = torch.rand(batch.rows.shape, generator=generator) < hidden_with[batch.rows]
            loss = _loss(model, batch._replace(rows=batch.rows.masked_fill(hide, UNKNOWN)))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, options.clip)
            optimizer.step()
            tokens = int(batch.lengths.sum())
            loss_sum += loss.detach() * tokens
            watch.batch(tokens)
        schedule.step()
        model.eval()
        seconds = time.perf_counter() - began
        mean_loss = float(loss_sum) / sum(lengths)
        history.append(Epoch(number, mean_loss, tagger.evaluate(dev).f1, seconds, sum(lengths)))
        if history[-1] is _best(history):
            best_values = [parameter.detach().clone() for parameter in parameters]
        watch.epoch(history[-1])
    with torch.no_grad():
        for parameter, value in zip(parameters, best_values, strict=True):
            parameter.copy_(value)
    return history, _best(history)


def _loss(model: LSTMTagger, batch: Batch) -> Tensor:
    """Mean cross-entropy over the real tokens of `batch`."""
    scores = model(batch.rows, batch.shapes, batch.lengths)  # (B, T, K)
    return torch.nn.functional.cross_entropy(scores.flatten(0, 1), batch.tags.flatten(), ignore_index=NO_TAG)


def _chance_of_hiding(sentences: list[Encoded], vocabulary: Vocabulary, hide: float) -> Tensor:
    """Return for each row how often it is read as <unk> in training, float32, shape (V,): 0 but for missing words."""
    counts = torch.bincount(torch.cat([sentence.rows for sentence in sentences]), minlength=len(vocabulary))
    chance = hide / (hide + counts.clamp(min=1))
    chance[:FIRST] = 0
    chance[FIRST + vocabulary.missing :] = 0
    return chance


def _rows_that_learn(learn: Learn, vocabulary: Vocabulary) -> Tensor:
    learns = torch.zeros(len(vocabulary), dtype=torch.bool)
    if learn == "missing":
        learns[vocabulary.learned] = True
    elif learn == "all":
        learns[PADDING + 1 :] = True
    return learns


def _best(history: list[Epoch]) -> Epoch:
    return max(history, key=lambda epoch: (epoch.dev_f1, -epoch.loss))
