"""Every pretrained word keeps its row, and what training lacks a vector for gets its own."""

from __future__ import annotations

import numpy as np
import pytest

from frostline.tagger import Vocabulary
from frostline.tagger.vocabulary import SHAPES, cover, initial_table, shape


def test_a_token_reads_its_own_row_then_that_of_its_lower_case_then_unknown() -> None:
    vocabulary = Vocabulary(["iPad", "paris", "Paris", "the"], missing=1)
    assert [vocabulary.row(token) for token in ["iPad", "Paris", "PARIS", "the", "THE", "ipad", "<pad>", ""]] == [
        2, 4, 3, 5, 5, 1, 1, 1,
    ]  # fmt: skip
    assert list(vocabulary.learned) == [1, 2]
    assert len(vocabulary) == 6


def test_coverage_counts_words_and_tokens_and_lists_the_missing_by_frequency() -> None:
    found = cover(["a", "b", "A", "c", "c", "a"], ["a", "x"])
    assert (found.words, found.tokens, found.found_words, found.found_tokens) == (4, 6, 2, 3)
    assert found.missing == ("c", "b")


def test_the_table_keeps_the_vectors_bits_and_draws_the_rest_as_widely_spread() -> None:
    draw = np.random.default_rng(0)
    vectors = (draw.normal(size=(3000, 4)) * [1, 2, 3, 4] + [0, 0, 5, 5]).astype(np.float32)
    table = initial_table(vectors, 2000, np.random.default_rng(1))
    assert table.shape == (5002, 4)
    assert np.array_equal(table[2002:], vectors)
    assert (table[0] == 0).all()
    assert np.allclose(table[1:2002].std(axis=0), [1, 2, 3, 4], rtol=0.1)
    assert np.allclose(table[1:2002].mean(axis=0), [0, 0, 5, 5], atol=0.3)
    assert np.array_equal(table, initial_table(vectors, 2000, np.random.default_rng(1)))


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
