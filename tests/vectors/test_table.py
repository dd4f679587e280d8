import numpy as np
import pytest

import frostline as fl
from frostline.vectors import Vectors


def test_vectors_made_of_plain_lists_answer_for_words_rows_and_numbers():
    vectors = Vectors(["ice", "snow", "Rime"], [[1, 2], [3, 4], [5, 6]])
    assert (len(vectors), vectors.dimension, repr(vectors)) == (3, 2, "Vectors(3 words x 2)")
    assert vectors.words == ["ice", "snow", "Rime"]
    assert vectors.matrix.dtype == np.float32
    assert vectors["snow"].tolist() == [3, 4]
    assert "Rime" in vectors
    assert "rime" not in vectors


def test_a_vector_is_a_copy_that_may_be_written_to():
    vectors = Vectors(["ice"], [[1, 2]])
    vectors["ice"][0] = 9
    assert vectors["ice"].tolist() == [1, 2]


def test_lower_case_is_a_fallback_and_exact_spelling_comes_first():
    vectors = Vectors(["us", "US", "ice"], [[1], [2], [3]])
    words = ["US", "us", "Us", "ICE", "Snow"]
    assert vectors.rows_of(words, lowercase=True).tolist() == [1, 0, 0, 2, -1]
    assert vectors.rows_of(words).tolist() == [1, 0, -1, -1, -1]


def test_a_missing_word_is_a_key_error_that_says_so():
    with pytest.raises(KeyError, match="'snow' is not among the 1 words"):
        Vectors(["ice"], [[1]])["snow"]


@pytest.mark.parametrize(
    ("words", "matrix", "says"),
    [
        (["a", "b"], [[1.0]], "matrix: has shape (1, 1) for 2 words. It needs one row for each word: (2, D)."),
        (["a"], [1.0], "matrix: has shape (1,) for 1 words. It needs one row for each word: (1, D)."),
        (["a", "b"], [[1.0], [float("nan")]], "matrix: row 1 ('b') holds a number that is not finite."),
        (["a"], [[1e300]], "matrix: row 0 ('a') holds a number that is not finite."),
        (["a", "b", "a", "b"], [[1]] * 4, "words: 2 listed more than once, the first is 'a' in row 2."),
    ],
)
def test_words_and_numbers_that_do_not_fit_are_refused(words, matrix, says):
    with pytest.raises(fl.ShapeError) as error:
        Vectors(words, matrix)
    assert str(error.value).startswith(says)
