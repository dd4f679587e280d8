"""Every pretrained word keeps its row, and training words without a vector get their own."""

from __future__ import annotations

import pytest

from frostline.tagger import Vocabulary


def test_a_token_reads_its_own_row_then_that_of_its_lower_case_then_unknown() -> None:
    vocabulary = Vocabulary(["iPad", "paris", "Paris", "the"], missing=1)
    assert [vocabulary.row(token) for token in ["iPad", "Paris", "PARIS", "the", "THE", "ipad", "<pad>", ""]] == [
        2, 4, 3, 5, 5, 1, 1, 1,
    ]  # fmt: skip
    assert list(vocabulary.words) == ["iPad", "paris", "Paris", "the"]
    assert list(vocabulary.learned) == [1, 2]
    assert len(vocabulary) == 6


def test_however_many_tokens_are_looked_up_each_has_its_row_and_few_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frostline.tagger.data.vocabulary._CACHED", 3)
    vocabulary = Vocabulary(["a", "b", "c", "d", "e"], missing=0)
    for _ in range(2):
        assert [vocabulary.row(token) for token in "abxcAdeB"] == [2, 3, 1, 4, 2, 5, 6, 3]
        assert len(vocabulary._cache) <= 3
