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


SOME = Vectors(["king", "man", "woman", "queen", "new york"], [[5, 1], [2, 0], [0, 3], [1, 9], [-1, 0]])


def test_an_analogy_adds_vectors_of_length_one_and_leaves_its_words_out():
    unit = {word: SOME[word].astype("f8") / np.linalg.norm(SOME[word].astype("f8")) for word in SOME.words}
    wanted = unit["king"] - unit["man"] + unit["woman"]
    slow = {word: float(unit[word] @ wanted / np.linalg.norm(wanted)) for word in ("queen", "new york")}
    assert dict(near(SOME, "king - man + woman")) == pytest.approx(slow, abs=1e-6)
    assert near(SOME, "king - man + woman", count=1)[0][0] == "queen"
    assert near(SOME, "king + king", count=1)[0] == pytest.approx(near(SOME, "king", count=1)[0])


def test_an_analogy_agrees_with_gensim():
    gensim = pytest.importorskip("gensim.models")
    draw = np.random.default_rng(0)
    words = [f"w{row}" for row in range(200)]
    theirs = gensim.KeyedVectors(8)
    theirs.add_vectors(words, draw.normal(size=(200, 8)).astype("f4"))
    expected = theirs.most_similar(positive=["w1", "w7"], negative=["w3"], topn=5)
    found = near(theirs, "w1 - w3 + w7", count=5)
    assert [word for word, _ in found] == [word for word, _ in expected]
    assert [cosine for _, cosine in found] == pytest.approx([cosine for _, cosine in expected], abs=1e-5)


def test_a_word_with_blanks_or_signs_is_a_word_if_it_has_a_vector():
    vectors = Vectors(["a", "b", "a - b", "c++"], [[1, 0], [0, 1], [1, 1], [0, -1]])
    assert [word for word, _ in near(vectors, "a - b")] == ["a", "b", "c++"]
    assert [word for word, _ in near(vectors, "c++ + a", count=2)] == ["a - b", "b"]
    assert near(SOME, "new york", count=1)[0][0] == "woman"


def test_a_vector_is_compared_with_all_words():
    assert near(SOME, [2.0, 0.0], count=2)[0] == ("man", 1.0)
    assert near(SOME, np.zeros(2), count=1) == [("king", 0.0)]
    assert near(SOME, SOME["king"], count=1)[0][0] == "king"


@pytest.mark.parametrize(
    ("query", "error", "says"),
    [
        ("king - men", fl.SelectionError, "word: 'men' is not among the 5 words."),
        ("king - Man", fl.SelectionError, "word: 'Man' is not among the 5 words. 'man' is."),
        ([1.0], fl.ShapeError, "query: expected a word, or a vector of 2 finite numbers, got shape (1,)."),
        ([1.0, np.nan], fl.ShapeError, "query: expected a word, or a vector of 2 finite numbers"),
    ],
)
def test_a_query_that_means_nothing_is_an_error(query, error, says):
    with pytest.raises(error, match=re.escape(says)):
        near(SOME, query)
