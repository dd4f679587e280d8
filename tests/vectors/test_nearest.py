"""The nearest words are those of the highest cosine, compared with a slow oracle."""

import re

import numpy as np
import pytest

import frostline as fl
from frostline.vectors import Vectors, near, nearest


def test_near_agrees_with_the_slow_way_in_blocks_of_any_size(monkeypatch):
    matrix = np.random.default_rng(0).normal(size=(50, 4))
    matrix[7] = 0
    vectors = Vectors([f"w{row}" for row in range(50)], matrix)
    unit = (
        vectors.matrix.astype("f8") / np.maximum(np.linalg.norm(vectors.matrix.astype("f8"), axis=1), 1e-300)[:, None]
    )
    slow = sorted(((float(unit[row] @ unit[3]), f"w{row}") for row in range(50) if row != 3), reverse=True)
    for size in (7, 65_536):
        monkeypatch.setattr(nearest, "_BLOCK", size)
        found = near(vectors, "w3", count=100)
        assert [word for word, _ in found] == [word for _, word in slow]
        assert [cosine for _, cosine in found] == pytest.approx([cosine for cosine, _ in slow], abs=1e-6)
        assert near(vectors, "w3", count=2) == found[:2]


def test_of_equally_near_words_the_first_in_the_file_comes_first():
    vectors = Vectors(["x", "a", "b", "c"], [[1, 0], [2, 0], [1, 0], [3, 0]])
    assert [word for word, _ in near(vectors, "b")] == ["x", "a", "c"]


@pytest.mark.parametrize(
    ("word", "count", "says"),
    [
        ("rain", 3, "word: 'rain' is not among the 2 words. `cover` says which words are."),
        ("ICE", 3, "word: 'ICE' is not among the 2 words. 'ice' is."),
        ("ice", 0, "count: 0 is below 1."),
    ],
)
def test_a_word_without_vector_and_a_count_below_one_are_refused(word, count, says):
    with pytest.raises(fl.SelectionError, match=re.escape(says)):
        near(Vectors(["ice", "snow"], [[1.0], [2.0]]), word, count)
