"""Batches of sentences of similar length, padded to the longest.

Letters used for shapes in this file:
    B  sentences of a batch       T  tokens of the longest       S  bytes of a token
    V  rows of the table
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from frostline.tagger.data.spelling import NO_BYTE, token_bytes, word_shape
from frostline.tagger.data.tags import to_iob2
from frostline.tagger.data.vocabulary import FIRST_WORD, PADDING, Vocabulary

NO_TAG = -100  # tag of padding; cross_entropy ignores it by default


class Encoded(NamedTuple):
    """One sentence as indices: the row, the word shape and, in training, the tag of each token, int64, shape (T,).

    `spellings` has the bytes of each, uint8, shape (T, S), if the network reads them.
    """

    rows: Tensor
    shapes: Tensor
    tags: Tensor
    spellings: Tensor | None


class Batch(NamedTuple):
    """Sentences as indices, each int64 of shape (B, T), the length of each, shape (B,), and (B, T, S) bytes or None."""

    rows: Tensor
    shapes: Tensor
    tags: Tensor
    lengths: Tensor
    spellings: Tensor | None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return a batch with `function` applied to each tensor."""
        return Batch._make(None if tensor is None else function(tensor) for tensor in self)


def encode(
    tokens: Sequence[str], vocabulary: Vocabulary, tags: Sequence[int] | None = None, *, characters: bool = False
) -> Encoded:
    """Return a sentence as indices; without `tags` every tag is NO_TAG, without `characters` `spellings` is None."""
    return Encoded(
        torch.tensor([vocabulary.row(token) for token in tokens], dtype=torch.int64),
        torch.tensor([word_shape(token) for token in tokens], dtype=torch.int64),
        torch.tensor([NO_TAG] * len(tokens) if tags is None else list(tags), dtype=torch.int64),
        token_bytes(tokens) if characters else None,
    )


def encode_corpus(
    sentences: Iterable[tuple[Sequence[str], Sequence[str]]],
    vocabulary: Vocabulary,
    names: Sequence[str],
    *,
    characters: bool = False,
) -> list[Encoded]:
    """Return labelled sentences as indices, without the empty ones; a tag becomes its index in `names`."""
    index = {name: tag for tag, name in enumerate(names)}
    return [
        encode(tokens, vocabulary, [index[tag] for tag in to_iob2(tags)], characters=characters)
        for tokens, tags in sentences
        if tokens
    ]


def unk_probabilities(sentences: Iterable[Encoded], vocabulary: Vocabulary, unk_dropout: float) -> Tensor:
    """Return for each row how often training reads it as <unk>, float32, shape (V,): 0 except for missing words.

    Args:
        sentences: The training sentences, in which words are counted.
        vocabulary: V rows.
        unk_dropout: A word that occurs n times is replaced with probability unk_dropout / (unk_dropout + n).

    Example:
        >>> vocabulary = Vocabulary(["new", "rare", "known"], missing=2)
        >>> unk_probabilities([encode(["new", "new", "new", "rare", "known"], vocabulary)], vocabulary, unk_dropout=1.0)
        tensor([0.0000, 0.0000, 0.2500, 0.5000, 0.0000])
    """
    counts = torch.bincount(torch.cat([sentence.rows for sentence in sentences]), minlength=len(vocabulary))
    probabilities = unk_dropout / (unk_dropout + counts.clamp(min=1))
    probabilities[:FIRST_WORD] = 0
    probabilities[FIRST_WORD + vocabulary.missing :] = 0
    return probabilities


def tag_set(sentences: Iterable[Sequence[str]]) -> list[str]:
    """Return the different tags of some sentences, in IOB2: O, then the others in alphabetical order.

    Example:
        >>> tag_set([["O", "I-place", "I-place"]])
        ['O', 'B-place', 'I-place']
    """
    return ["O", *sorted({tag for tags in sentences for tag in to_iob2(tags)} - {"O"})]


def pad(sentences: Sequence[Encoded]) -> Batch:
    """Return one batch of `sentences`, in their order."""
    spellings = [sentence.spellings for sentence in sentences if sentence.spellings is not None]
    return Batch(
        _padded([sentence.rows for sentence in sentences], PADDING),
        _padded([sentence.shapes for sentence in sentences], PADDING),
        _padded([sentence.tags for sentence in sentences], NO_TAG),
        torch.tensor([len(sentence.rows) for sentence in sentences], dtype=torch.int64),
        _padded(spellings, NO_BYTE) if spellings else None,
    )


def _padded(tensors: list[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)


def group_by_length(
    lengths: Sequence[int], size: int, max_tokens: float = math.inf, max_padding: float = math.inf
) -> list[list[int]]:
    """Return the indices of all sentences in groups, the shortest sentences first.

    Args:
        lengths: Tokens of each sentence.
        size: Sentences of a group, at most.
        max_tokens: Tokens of a group, padding included, at most; a longer sentence is a group of its own.
        max_padding: Padding of a group, at most.

    Example:
        >>> group_by_length([5, 1, 4, 2], size=2), group_by_length([5, 1, 4, 2], size=4, max_tokens=8)
        ([[1, 3], [2, 0]], [[1, 3], [2], [0]])
        >>> group_by_length([5, 1, 4, 2], size=4, max_padding=1)
        [[1, 3], [2, 0]]
    """
    groups: list[list[int]] = []
    tokens = 0  # of the last group, without padding
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        # Sorted by length, so the sentence that joins a group decides what all others of it are padded to.
        padded = (len(groups[-1]) + 1) * lengths[index] if groups else 0
        tokens += lengths[index]
        if not groups or len(groups[-1]) == size or padded > max_tokens or padded - tokens > max_padding:
            groups.append([])
            tokens = lengths[index]
        groups[-1].append(index)
    return groups


def shuffled_groups(lengths: Sequence[int], size: int, generator: torch.Generator, pool: int = 20) -> list[list[int]]:
    """Return the indices of all sentences in groups of similar length, in random order.

    Args:
        lengths: Tokens of each sentence.
        size: Sentences of a group, at most.
        generator: Draws the groups and their order.
        pool: Groups that are sorted by length together: more means less padding, fewer means more mixing.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    groups = []
    for start in range(0, len(order), pool * size):
        part = order[start : start + pool * size]
        groups += [[part[i] for i in group] for group in group_by_length([lengths[index] for index in part], size)]
    return [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
