"""The tagger as a victim of `frostline.adversarial`: which words it may be shown, and what it makes of them.

Letters used for shapes in this file:
    B  sentences       T  tokens of the longest       N  rows computed together
    C  candidates      S  bytes of a token

The idea: a word stands for another only if both are written alike (the tagger reads a word's shape, and the gold tags
should stay right), and in the place of an entity nothing changes. A replacement is written with the capitals of the
word it replaces, as the vocabulary looks words up in lower case as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from frostline.adversarial import Allowed
from frostline.adversarial.attack import Encoded, Prediction
from frostline.tagger.data.batches import Batch, encode, pad
from frostline.tagger.data.spelling import token_bytes, word_shape
from frostline.tagger.data.tags import to_iob2
from frostline.tagger.data.vocabulary import FIRST_WORD, PADDING, UNKNOWN
from frostline.tagger.network.model import LSTMTagger
from frostline.tagger.tagger import Tagger

_FREQUENT = 100  # words at the start of the vectors, usually the most frequent, that stay: function words, punctuation
_CANDIDATES = 20_000  # words after those: common enough to be read without surprise
_NEAREST = 50
_SWAPPED = {word_shape(word): case for case, word in enumerate(("lower", "Title", "CAPITALS"))}


class TaggerVictim:
    """A tagger that can be attacked by `frostline.adversarial.attack`.

    Args:
        tagger: What to attack; nothing of it changes.
        nearest: A word is replaced by one of so many nearest to it in the table.
    """

    def __init__(self, tagger: Tagger, nearest: int = _NEAREST) -> None:
        self._tagger = tagger
        self.module: nn.Module = tagger.model.embed
        vocabulary = tagger.vocabulary
        self._groups = torch.full((len(vocabulary),), -1)
        first = FIRST_WORD + vocabulary.missing
        rows = range(first + _FREQUENT, min(first + _FREQUENT + _CANDIDATES, len(vocabulary)))
        candidates = [row for row in rows if self._word(row).isalpha() and self._swappable(self._word(row))]
        self._candidates = torch.tensor(candidates, dtype=torch.int64)  # ascending
        self._note_groups(candidates)
        frequent = range(first, min(first + _FREQUENT, len(vocabulary)))
        stop = torch.tensor([PADDING, UNKNOWN, *frequent])
        self.allowed = Allowed(self._candidates, nearest=nearest, groups=self._groups, stop=stop)
        self._spellings: Tensor | None = None
        if tagger.model.char_cnn is not None and candidates:
            words = [self._word(row) for row in candidates]
            cases = [[_in_case(word, case) for word in words] for case in _SWAPPED.values()]
            self._spellings = torch.stack([token_bytes(words) for words in cases])  # (cases, C, S)

    def encode(self, sentences: Sequence[Sequence[str]], targets: Sequence[Prediction]) -> Encoded:
        """Return sentences as ids, what is protected (entities, words of other shapes), and their losses."""
        tagger = self._tagger
        index = {tag: number for number, tag in enumerate(tagger.tags)}
        o = index["O"]
        tags = [[index.get(tag, o) for tag in to_iob2(list(target))] for target in targets]
        characters = tagger.model.char_cnn is not None
        encoded = [
            encode(tokens, tagger.vocabulary, numbers, characters=characters)
            for tokens, numbers in zip(sentences, tags, strict=True)
        ]
        self._note_groups(torch.cat([each.rows for each in encoded]).unique().tolist())
        batch = pad(encoded).to(tagger.device)
        protect = torch.ones_like(batch.rows, dtype=torch.bool)
        for row, (tokens, target) in enumerate(zip(sentences, targets, strict=True)):
            stays = [tag != "O" or not self._swappable(token) for token, tag in zip(tokens, target, strict=True)]
            protect[row, : len(stays)] = torch.tensor(stays)
        if self._spellings is not None:
            case = torch.zeros_like(batch.rows)
            for shape, value in _SWAPPED.items():
                case[batch.shapes == shape] = value
            spelled = _Spelled(self._spellings.to(tagger.device), self._candidates.to(tagger.device), case)
        else:
            spelled = None
        return Encoded(batch.rows, protect, partial(_losses, tagger.model, batch, spelled))

    def predict(self, sentences: Sequence[Sequence[str]]) -> list[Prediction]:
        """Return the tags of each sentence."""
        return list(self._tagger.predict(sentences))

    def word(self, id: int, instead_of: str) -> str:
        """Return the word of a row with the capitals of `instead_of`."""
        word = self._word(id)
        return word if word_shape(word) == word_shape(instead_of) else _in_case(word, _SWAPPED[word_shape(instead_of)])

    def _word(self, row: int) -> str:
        return self._tagger.vocabulary.words[row - FIRST_WORD]

    def _swappable(self, token: str) -> bool:
        return len(token) > 1 and word_shape(token) in _SWAPPED

    def _note_groups(self, rows: Sequence[int]) -> None:
        for row in rows:
            if row >= FIRST_WORD:
                self._groups[row] = word_shape(self._word(row))


class _Spelled(NamedTuple):
    """Bytes of the candidates in each case, (cases, C, S), the candidates, (C,), and each token's case, (B, T)."""

    bytes: Tensor
    candidates: Tensor
    case: Tensor


def _losses(model: LSTMTagger, batch: Batch, spelled: _Spelled | None, ids: Tensor, which: Tensor) -> Tensor:
    """Return the loss of each row, shape (N,), of ids (N, T) in the place of those of sentence `which`, (N,)."""
    rows = batch.map(lambda tensor: tensor[which])
    spellings = rows.spellings
    if spelled is not None and spellings is not None:
        swapped = ids != rows.rows
        candidate = torch.searchsorted(spelled.candidates, ids[swapped])
        bytes_ = spelled.bytes[spelled.case[which][swapped], candidate]
        spellings = spellings.masked_scatter(swapped[..., None], bytes_)
    features = model.read(ids, rows.shapes, rows.lengths, spellings)
    losses: Tensor = model.head.loss(features, rows.tags, rows.lengths)
    return losses


def _in_case(word: str, case: int) -> str:
    return (word, word[:1].upper() + word[1:], word.upper())[case]
