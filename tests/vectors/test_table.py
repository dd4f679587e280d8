"""Vectors made in memory are checked, and words are found by their exact spelling or in lower case."""

import re
from pathlib import Path

import numpy as np
import pytest

import frostline as fl
from frostline.vectors import Vectors, load, save
from frostline.vectors.table import release_pages


def test_vectors_from_plain_lists_have_words_rows_and_values():
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
        (["a", "b"], [[1.0], [float("nan")]], "matrix: row 1 ('b') holds a value that is not finite."),
        (["a"], [[1e300]], "matrix: row 0 ('a') holds a value that is not finite."),
        (["a", "b", "a", "b"], [[1]] * 4, "words: 2 listed more than once, the first is 'a' in row 2."),
    ],
)
def test_words_and_matrix_that_do_not_match_are_an_error(words, matrix, says):
    with pytest.raises(fl.ShapeError) as error:
        Vectors(words, matrix)
    assert str(error.value).startswith(says)


def file_mb():
    """Resident memory of this process that is mapped from files, in MB."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs Linux's /proc")
    found = re.search(r"RssFile:\s+(\d+)", status.read_text())
    return int(found.group(1)) / 1024


def test_released_pages_lower_the_resident_memory_and_read_the_same_again(tmp_path):
    matrix = np.random.default_rng(0).normal(size=(40_000, 100)).astype(np.float32)  # 15 MB
    save(Vectors([f"w{row}" for row in range(40_000)], matrix), tmp_path / "v.safetensors")
    loaded = load(tmp_path / "v.safetensors")
    before = file_mb()
    assert np.array_equal(loaded.matrix, matrix)
    read = file_mb()
    release_pages(loaded.matrix[3:])
    assert read - before > 12
    assert file_mb() - before < 3
    assert np.array_equal(loaded.matrix, matrix)
    assert loaded.words[39_999] == "w39999"


@pytest.mark.parametrize("mode", ["c", "r+"])
def test_values_written_to_a_mapping_are_never_discarded(tmp_path, mode):
    np.zeros(50_000, dtype=np.float32).tofile(tmp_path / "values")
    mapped = np.memmap(tmp_path / "values", dtype=np.float32, mode=mode)
    mapped[:] = 7.0
    locked = np.asarray(mapped)
    locked.flags.writeable = False
    for array in (mapped, locked, mapped[5:]):
        release_pages(array)
    assert (mapped == 7.0).all()
    plain = np.ones(9, dtype=np.float32)
    release_pages(plain)
    assert (plain == 1.0).all()
