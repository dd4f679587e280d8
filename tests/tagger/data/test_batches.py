"""Groups of sentences hold each sentence once, and no more tokens than allowed, however long one sentence is."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
import torch

from frostline import tagger
from frostline.tagger import tagger as tagging
from frostline.tagger.data.batches import Batch, group_by_length, pad, shuffled_groups


def test_groups_are_full_where_no_sentence_is_long() -> None:
    dice = random.Random(0)
    lengths = [dice.randrange(40) for _ in range(1000)]
    groups = group_by_length(lengths, 64, 64 * 40)
    assert groups == group_by_length(lengths, 64)
    assert [len(group) for group in groups] == [64] * 15 + [40]
    assert sorted(index for group in groups for index in group) == list(range(1000))
    assert [lengths[index] for group in groups for index in group] == sorted(lengths)


def test_no_group_has_more_tokens_with_its_padding_than_allowed_unless_it_is_one_longer_sentence() -> None:
    dice = random.Random(0)
    lengths = [round(dice.paretovariate(0.7)) for _ in range(1000)]
    groups = group_by_length(lengths, 64, 500)
    assert sorted(index for group in groups for index in group) == list(range(1000))
    assert max(lengths) > 500
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[index] for index in group) <= 500


def test_short_sentences_are_not_padded_to_a_long_one(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = tagger.train(toy.train, toy.dev, toy.vectors, epochs=1, config=toy.config).tagger
    tokens = list(toy.dev[0].tokens)
    read: list[int] = []

    def padded(sentences: Any) -> Batch:
        batch = pad(sentences)
        read.append(batch.rows.numel())
        return batch

    monkeypatch.setattr(tagging, "pad", padded)
    found = trained.predict([tokens, tokens * 5_000] + [tokens] * 40)
    assert sum(read) == len(tokens) * (5_000 + 41)
    assert found[0] == found[-1] == trained.predict([tokens])[0]
    assert len(found[1]) == 5_000 * len(tokens)


def test_no_group_has_more_padding_than_allowed_and_similar_lengths_stay_together() -> None:
    dice = random.Random(0)
    lengths = [dice.randrange(1, 40) for _ in range(1000)]
    groups = group_by_length(lengths, 64, max_padding=30)
    assert [lengths[index] for group in groups for index in group] == sorted(lengths)
    paddings = [len(group) * lengths[group[-1]] - sum(lengths[index] for index in group) for group in groups]
    assert max(paddings) <= 30
    assert any(paddings)
    for group, after in pairwise(groups):
        more = [lengths[index] for index in [*group, after[0]]]
        assert len(group) == 64 or len(more) * max(more) - sum(more) > 30, "the next sentence would have been too many"


def test_groups_hold_every_sentence_once_and_similar_lengths_together() -> None:
    lengths = [(7 * i) % 23 + 1 for i in range(101)]
    groups = shuffled_groups(lengths, 8, torch.Generator().manual_seed(0))
    assert sorted(index for group in groups for index in group) == list(range(101))
    padding = sum(len(group) * max(lengths[i] for i in group) for group in groups) - sum(lengths)
    assert padding < 0.25 * sum(lengths)
    assert groups != shuffled_groups(lengths, 8, torch.Generator().manual_seed(1))
    assert groups == shuffled_groups(lengths, 8, torch.Generator().manual_seed(0))
    assert [lengths[i] for group in group_by_length(lengths, 8) for i in group] == sorted(lengths)
