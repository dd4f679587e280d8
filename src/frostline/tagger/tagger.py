"""A trained tagger: the network, the vocabulary and the tags, used together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from frostline.tagger import saved as folder
from frostline.tagger.data.batches import by_length, encode, pad
from frostline.tagger.data.conll import Sentence
from frostline.tagger.data.vocabulary import Vocabulary
from frostline.tagger.network.model import LSTMTagger
from frostline.tagger.scoring.scores import Score, score

Labelled = Sentence | tuple[Sequence[str], Sequence[str]]
_BATCH = 64
_TOKENS = 16_384  # of a batch, padding included: one line of 30,000 tokens beside 63 short ones took 8 GB
_PADDING = 80  # places of a batch: so many cost about what one more batch does


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread inside, and on as many as before afterwards.

    A network this small gains little from a second thread, and where another program wants that core it loses much:
    each operation then waits for the slower of the two. A thread of the program that begins while another is inside
    has one for good.
    """
    before = torch.get_num_threads()
    if before == 1:  # nothing to put back: another thread of this program may have set it, and will
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
        model: The network; its mode (train or eval) is kept by every method.
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
            raise TypeError("sentences: a string where a list of tokens belongs. Pass [sentence.split()].")
        found: list[list[str]] = [[] for _ in sentences]
        filled = [number for number, tokens in enumerate(sentences) if tokens]
        characters = self.model.spelling is not None
        was_training = self.model.training
        if was_training:  # to ask is quick, to tell every layer is not
            self.model.eval()
        try:
            with torch.no_grad(), one_thread():
                for group in by_length([len(sentences[number]) for number in filled], _BATCH, _TOKENS, _PADDING):
                    numbers = [filled[place] for place in group]
                    batch = pad(
                        [encode(sentences[number], self.vocabulary, characters=characters) for number in numbers]
                    ).to(self.device)
                    read = self.model.read(batch.rows, batch.shapes, batch.lengths, batch.spellings)
                    best = self.model.head.tags(read, batch.lengths).tolist()
                    for number, choice in zip(numbers, best, strict=True):
                        found[number] = [self.tags[tag] for tag in choice[: len(sentences[number])]]
        finally:
            if was_training:
                self.model.train()
        return found

    def evaluate(self, sentences: Sequence[Labelled]) -> Score:
        """Return entity precision, recall and F1 of `predict` against the tags of `sentences`."""
        return score([tags for _, tags in sentences], self.predict([tokens for tokens, _ in sentences]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tagger as a folder, whole or not at all; a tagger that is already there is replaced.

        Raises:
            ModelFolderError: something else is there, or the disk refuses.
        """
        folder.save(path, self.model, self.vocabulary, self.tags)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tagger:
        """Read a folder that `save` wrote; nothing of the model learns.

        Raises:
            ModelFolderError: the folder is missing, damaged or not of this format. Nothing in it is executed.
        """
        return cls(*folder.load(path))
