"""Sentences of similar length side by side, padded to the longest.

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

from frostline.tagger.data.tags import legal
from frostline.tagger.data.vocabulary import FIRST, NOTHING, PADDING, Vocabulary, shape, spell

NO_TAG = -100  # where padding stands; cross_entropy leaves it out


class Encoded(NamedTuple):
    """One sentence as numbers: the row, the shape and, in training, the tag of each token, int64, shape (T,).

    `spellings` has the bytes of each, uint8, shape (T, S), where the network reads them.
    """

    rows: Tensor
    shapes: Tensor
    tags: Tensor
    spellings: Tensor | None


class Batch(NamedTuple):
    """Sentences as numbers, each int64 of shape (B, T), the length of each, shape (B,), and (B, T, S) bytes or None."""

    rows: Tensor
    shapes: Tensor
    tags: Tensor
    lengths: Tensor
    spellings: Tensor | None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`."""
        return self.each(lambda numbers: numbers.to(device))

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return a batch of what `change` makes of each tensor."""
        return Batch._make(None if numbers is None else change(numbers) for numbers in self)


def encode(
    tokens: Sequence[str], vocabulary: Vocabulary, tags: Sequence[int] | None = None, *, characters: bool = False
) -> Encoded:
    """Return `tokens` as numbers; without `tags` every tag is NO_TAG, without `characters` there are no spellings."""
    return Encoded(
        torch.tensor([vocabulary.row(token) for token in tokens], dtype=torch.int64),
        torch.tensor([shape(token) for token in tokens], dtype=torch.int64),
        torch.tensor([NO_TAG] * len(tokens) if tags is None else list(tags), dtype=torch.int64),
        spell(tokens) if characters else None,
    )


def encoded(
    sentences: Iterable[tuple[Sequence[str], Sequence[str]]],
    vocabulary: Vocabulary,
    names: Sequence[str],
    *,
    characters: bool = False,
) -> list[Encoded]:
    """Return labelled sentences as numbers, without the empty ones; the number of a tag is its place in `names`."""
    numbers = {name: number for number, name in enumerate(names)}
    return [
        encode(tokens, vocabulary, [numbers[tag] for tag in legal(tags)], characters=characters)
        for tokens, tags in sentences
        if tokens
    ]


def chance_of_hiding(sentences: Iterable[Encoded], vocabulary: Vocabulary, hide: float) -> Tensor:
    """Return for each row how often it is read as <unk> in training, float32, shape (V,): 0 but for missing words.

    Args:
        sentences: All that are learned from: each word is counted.
        vocabulary: V rows.
        hide: A word seen n times is hidden with probability hide / (hide + n).

    Example:
        >>> vocabulary = Vocabulary(["new", "rare", "known"], missing=2)
        >>> chance_of_hiding([encode(["new", "new", "new", "rare", "known"], vocabulary)], vocabulary, hide=1.0)
        tensor([0.0000, 0.0000, 0.2500, 0.5000, 0.0000])
    """
    counts = torch.bincount(torch.cat([sentence.rows for sentence in sentences]), minlength=len(vocabulary))
    chance = hide / (hide + counts.clamp(min=1))
    chance[:FIRST] = 0
    chance[FIRST + vocabulary.missing :] = 0
    return chance


def tag_set(lines: Iterable[Sequence[str]]) -> list[str]:
    """Return the names of the tags in `lines`, made legal: O, then the others in order.

    Example:
        >>> tag_set([["O", "I-place", "I-place"]])
        ['O', 'B-place', 'I-place']
    """
    return ["O", *sorted({tag for tags in lines for tag in legal(tags)} - {"O"})]


def pad(sentences: Sequence[Encoded]) -> Batch:
    """Return one batch of `sentences`, in their order."""
    spellings = [sentence.spellings for sentence in sentences if sentence.spellings is not None]
    return Batch(
        _padded([sentence.rows for sentence in sentences], PADDING),
        _padded([sentence.shapes for sentence in sentences], PADDING),
        _padded([sentence.tags for sentence in sentences], NO_TAG),
        torch.tensor([len(sentence.rows) for sentence in sentences], dtype=torch.int64),
        _padded(spellings, NOTHING) if spellings else None,
    )


def _padded(lines: list[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(lines, batch_first=True, padding_value=value)


def by_length(
    lengths: Sequence[int], size: int, tokens: float = math.inf, padding: float = math.inf
) -> list[list[int]]:
    """Return the numbers of all sentences in groups, the shortest sentences first.

    Args:
        lengths: Tokens of each sentence.
        size: Sentences of a group, at most.
        tokens: What a group may have, padding included; a longer sentence is alone.
        padding: How much of that may be padding.

    Example:
        >>> by_length([5, 1, 4, 2], size=2), by_length([5, 1, 4, 2], size=4, tokens=8)
        ([[1, 3], [2, 0]], [[1, 3], [2], [0]])
        >>> by_length([5, 1, 4, 2], size=4, padding=1)
        [[1, 3], [2, 0]]
    """
    groups: list[list[int]] = []
    held = 0  # tokens of the last group
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        places = (len(groups[-1]) + 1) * lengths[number] if groups else 0
        held += lengths[number]
        if not groups or len(groups[-1]) == size or places > tokens or places - held > padding:
            groups.append([])
            held = lengths[number]
        groups[-1].append(number)
    return groups


def shuffled(lengths: Sequence[int], size: int, generator: torch.Generator, pool: int = 20) -> list[list[int]]:
    """Return the numbers of all sentences in groups of similar length, in an order that `generator` draws.

    Args:
        lengths: Tokens of each sentence.
        size: Sentences of a group, at most.
        generator: Decides who meets whom, and when.
        pool: Groups that are sorted by length together: more means less padding, fewer means more mixing.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    groups = []
    for start in range(0, len(order), pool * size):
        part = order[start : start + pool * size]
        groups += [[part[i] for i in group] for group in by_length([lengths[number] for number in part], size)]
    return [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
