"""Every pretrained word keeps its row, and what training lacks a vector for gets its own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from frostline.tagger import Vocabulary
from frostline.tagger.data.vocabulary import SHAPES, cover, shape
from frostline.vectors import Words


def test_a_token_reads_its_own_row_then_that_of_its_lower_case_then_unknown() -> None:
    vocabulary = Vocabulary(["iPad", "paris", "Paris", "the"], missing=1)
    assert [vocabulary.row(token) for token in ["iPad", "Paris", "PARIS", "the", "THE", "ipad", "<pad>", ""]] == [
        2, 4, 3, 5, 5, 1, 1, 1,
    ]  # fmt: skip
    assert list(vocabulary.words) == ["iPad", "paris", "Paris", "the"]
    assert list(vocabulary.learned) == [1, 2]
    assert len(vocabulary) == 6


def test_however_many_tokens_are_met_each_has_its_row_and_few_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frostline.tagger.data.vocabulary._MET", 3)
    vocabulary = Vocabulary(["a", "b", "c", "d", "e"], missing=0)
    for _ in range(2):
        assert [vocabulary.row(token) for token in "abxcAdeB"] == [2, 3, 1, 4, 2, 5, 6, 3]
        assert len(vocabulary._met) <= 3


@pytest.mark.parametrize("words", [["a", "x"], Words.of(["a", "x"])], ids=["list", "packed"])
def test_coverage_counts_words_and_tokens_and_lists_the_missing_by_frequency(words: Sequence[str]) -> None:
    found = cover(["a", "b", "A", "c", "c", "a"], words)
    assert (found.words, found.tokens, found.found_words, found.found_tokens) == (4, 6, 2, 3)
    assert found.missing == ("c", "b")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("word", "Word"), ("Word", "WORD"), ("WORD", "W"), ("iPad", "word"), ("IPad", "Ipad"), ("42", "b2b"),
        ("@me", "#me"), ("#me", "me"), ("http://a.b", "a"), ("...", "word"), ("...", "😀"), ("@", "@me"),
    ],
)  # fmt: skip
def test_shape_tells_apart_what_lower_case_hides(one: str, other: str) -> None:
    assert shape(one) != shape(other)


@pytest.mark.parametrize("token", ["", " ", "a", "A", "É", "文", "1", "½", "-", "😀", "n't", "McDonald", "ǅ", "x" * 99])
def test_every_token_has_a_shape_within_the_table(token: str) -> None:
    assert 1 <= shape(token) < SHAPES
