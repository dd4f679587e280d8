"""The batches of every epoch: which sentences, in which order, and which of their words are read as <unk>.

One generator draws all of it, so its state and the batches that are left are all that a checkpoint needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frostline.tagger.config import TaggerConfig, auxiliary_fraction
from frostline.tagger.data.batches import Batch, Encoded, pad, shuffled_groups, unk_probabilities
from frostline.tagger.data.vocabulary import UNKNOWN, Vocabulary
from frostline.tagger.network.model import Head


@dataclass(frozen=True)
class Corpus:
    """Labelled sentences in encoded form, none of them empty, and the head that learns their tags."""

    sentences: list[Encoded]
    head: Head


class BatchSampler:
    """Draws the batches of a training run, each from a single corpus.

    Args:
        corpora: The main corpus, then the auxiliary ones, which fade out (see `auxiliary_fraction`).
        vocabulary: Its missing words are replaced by <unk> at random.
        config: Batch size and `unk_dropout`.
        epochs: Passes over the main corpus.
        seed: The seed of everything that is drawn.

    Attributes:
        left: Batches still to come in this epoch, the next one last: index of a corpus, indices of its sentences.
        steps: Batches of the whole training.
    """

    def __init__(
        self, corpora: Sequence[Corpus], vocabulary: Vocabulary, config: TaggerConfig, epochs: int, seed: int
    ) -> None:
        self.corpora, self.epochs, self.seed = corpora, epochs, seed
        self.left: list[tuple[int, list[int]]] = []
        self._batch_size = config.batch_size
        self._generator = torch.Generator().manual_seed(seed)
        sentences = [sentence for corpus in corpora for sentence in corpus.sentences]
        self._unk_probabilities = unk_probabilities(sentences, vocabulary, config.unk_dropout)
        self.steps = sum(self._batches(index, done) for index in range(len(corpora)) for done in range(epochs))

    def start_epoch(self, epochs_done: int) -> None:
        """Draw the batches of the epoch that follows `epochs_done` others."""
        batches = []
        for index, corpus in enumerate(self.corpora):
            lengths = [len(sentence.rows) for sentence in corpus.sentences]
            drawn = shuffled_groups(lengths, self._batch_size, self._generator)
            batches += [(index, sentences) for sentences in drawn[: self._batches(index, epochs_done)]]
        self.left = [batches[i] for i in torch.randperm(len(batches), generator=self._generator).tolist()]

    def next_batch(self) -> tuple[int, Batch]:
        """Return the next batch and the index of its corpus."""
        index, sentences = self.left.pop()
        batch = pad([self.corpora[index].sentences[sentence] for sentence in sentences])
        replaced = torch.rand(batch.rows.shape, generator=self._generator) < self._unk_probabilities[batch.rows]
        return index, batch._replace(rows=batch.rows.masked_fill(replaced, UNKNOWN))

    def _batches(self, index: int, epochs_done: int) -> int:
        """Return how many batches of a corpus the epoch that follows `epochs_done` others has."""
        batches = math.ceil(len(self.corpora[index].sentences) / self._batch_size)
        return round(batches * auxiliary_fraction(epochs_done, self.epochs)) if index else batches

    def state(self) -> Tensor:
        """Return the state of the generator."""
        return self._generator.get_state()

    def restore(self, state: Tensor, left: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Continue from a generator's `state` with the batches that were `left` then.

        Raises:
            TypeError, ValueError, RuntimeError: The state is malformed, or a batch refers to a missing sentence.
        """
        self.left = [(int(index), [int(sentence) for sentence in sentences]) for index, sentences in left]
        for index, sentences in self.left:
            if index not in range(len(self.corpora)) or not set(sentences) <= set(
                range(len(self.corpora[index].sentences))
            ):
                raise ValueError("a batch of sentences that do not exist")
        self._generator.set_state(state)
