"""A trained tagger: the network, the vocabulary and the tags, used together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from frostline.tagger import saved
from frostline.tagger.data.batches import encode, group_by_length, pad
from frostline.tagger.data.conll import Sentence
from frostline.tagger.data.vocabulary import Vocabulary
from frostline.tagger.network.model import LSTMTagger
from frostline.tagger.scoring.scores import Score, score

Labelled = Sentence | tuple[Sequence[str], Sequence[str]]
_BATCH_SIZE = 64
_MAX_TOKENS = 16_384  # of a batch, padding included: a line of 30,000 tokens among 63 short ones took 8 GB
_MAX_PADDING = 80  # tokens of padding in a batch: more cost about what another batch does


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread inside the block, and on as many as before after it.

    A network this small gains little from a second thread, and loses much where another program wants that core: each
    operation then waits for the slower of the two. A thread of the program that enters while another is inside keeps
    one thread afterwards.
    """
    before = torch.get_num_threads()
    if before == 1:  # nothing to restore: another thread of this program may have set it, and will restore it
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class Tagger:
    """Tags sentences.

    Args:
        model: The network; every method leaves its mode (train or eval) as it was.
        vocabulary: The row of each word.
        tags: The tag of each of the network's scores.
    """

    model: LSTMTagger
    vocabulary: Vocabulary
    tags: list[str]

    @property
    def device(self) -> torch.device:
        """Where it computes; `model.to(device)` moves it."""
        return self.model.head.linear.weight.device

    def predict(self, sentences: Iterable[Sequence[str]]) -> list[list[str]]:
        """Return the tags of each sentence, one for each token; no tags for no tokens.

        Args:
            sentences: Each a sequence of tokens.

        Cost: one forward pass over batches of similar length; no gradient.
        """
        sentences = list(sentences)
        if any(isinstance(tokens, str) for tokens in sentences):
            raise TypeError("sentences: expected lists of tokens, got a string. Pass [sentence.split()].")
        found: list[list[str]] = [[] for _ in sentences]
        filled = [index for index, tokens in enumerate(sentences) if tokens]
        was_training = self.model.training
        if was_training:  # asking is cheap, setting the mode of every layer is not
            self.model.eval()
        try:
            with torch.no_grad(), one_thread():
                lengths = [len(sentences[index]) for index in filled]
                for group in group_by_length(lengths, _BATCH_SIZE, _MAX_TOKENS, _MAX_PADDING):
                    batch = [filled[index] for index in group]
                    for index, tags in zip(batch, self._best_tags([sentences[i] for i in batch]), strict=True):
                        found[index] = [self.tags[tag] for tag in tags[: len(sentences[index])]]
        finally:
            if was_training:
                self.model.train()
        return found

    def _best_tags(self, sentences: Sequence[Sequence[str]]) -> list[list[int]]:
        characters = self.model.char_cnn is not None
        encoded = [encode(tokens, self.vocabulary, characters=characters) for tokens in sentences]
        batch = pad(encoded).to(self.device)
        features = self.model.read(batch.rows, batch.shapes, batch.lengths, batch.spellings)
        return self.model.head.tags(features, batch.lengths).tolist()

    def evaluate(self, sentences: Sequence[Labelled]) -> Score:
        """Return entity precision, recall and F1 of `predict` against the tags of `sentences`."""
        return score([tags for _, tags in sentences], self.predict([tokens for tokens, _ in sentences]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tagger as a folder, atomically; a tagger that is already there is replaced.

        Raises:
            ModelFolderError: Something else is there, or it cannot be written.
        """
        saved.save(path, self.model, self.vocabulary, self.tags)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tagger:
        """Read a folder that `save` wrote; nothing of the model learns.

        Raises:
            ModelFolderError: The folder is missing, damaged or not of this format. Nothing in it is executed.
        """
        return cls(*saved.load(path))
