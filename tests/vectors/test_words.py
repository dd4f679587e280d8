"""Packed words behave like a list with a fast look-up."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.vectors import Words
from frostline.vectors import words as module

SOME = ["the", "frost", "", "ı", "\u00a0", "\u2028x", "日本語", "a b", "\x00", "\x00\x00", "frosts"]


def slow_hash(word):
    total = sum((byte + 1) * module._BASE**index for index, byte in enumerate(word.encode("utf-8", "surrogatepass")))
    return total % 2**64


def test_words_are_a_sequence_of_strings():
    words = Words.of(SOME)
    assert len(words) == len(SOME)
    assert list(words) == SOME
    assert words == SOME
    assert words != SOME[:-1]
    assert words[1:7:2] == SOME[1:7:2]
    assert words[-1] == "frosts"
    assert [words.index(word) for word in SOME] == list(range(len(SOME)))
    assert repr(words) == "Words(11: 'the', 'frost', '', ...)"
    with pytest.raises(IndexError):
        words[11]
    with pytest.raises(ValueError, match="'ice' is not among the 11 words"):
        words.index("ice")


def test_a_missing_word_has_row_minus_one_and_a_repeated_one_its_row_each_time():
    words = Words.of(SOME)
    assert words.rows_of(["ice", "日本語", "the", "The", "日本語", "日本", ""]).tolist() == [-1, 6, 0, -1, 6, -1, 2]
    assert "frost" in words
    assert "ice" not in words
    assert 3 not in words


def test_empty_words_contain_nothing():
    assert Words.of([]).rows_of(["a"]).tolist() == [-1]
    assert Words.of([]).row_of("a") == -1
    assert Words.of(["a"]).rows_of([]).tolist() == []
    assert list(Words.of([])) == []


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(st.characters(), max_size=9), unique=True, max_size=30), st.lists(st.text(max_size=3)))
def test_look_ups_agree_with_a_dictionary(known, queries):
    rows = {word: row for row, word in enumerate(known)}
    words = Words.of(known)
    assert list(words) == known
    assert words.rows_of(known + queries).tolist() == [rows.get(word, -1) for word in known + queries]
    assert [words.row_of(word) for word in known + queries] == [rows.get(word, -1) for word in known + queries]
    assert [int(hash_) for hash_ in module.hash_words(*module.pack(known))] == [slow_hash(word) for word in known]


@pytest.mark.parametrize("buckets", [1, 3])
def test_words_with_equal_hashes_are_told_apart_by_their_bytes(monkeypatch, buckets):
    monkeypatch.setattr(module, "hash_words", lambda blob, offsets: (np.diff(offsets) % buckets).astype(np.uint64))
    monkeypatch.setattr(module, "hash_word", lambda word: len(word) % buckets)
    words = Words.of(SOME)
    queries = [*SOME, "ice", "forst"]
    assert words.rows_of(queries).tolist() == [*range(len(SOME)), -1, -1]
    assert [words.row_of(word) for word in queries] == [*range(len(SOME)), -1, -1]


def test_concatenated_words_are_those_of_both_in_order():
    together = Words.of(SOME[:4]) + Words.of(SOME[4:])
    assert together == SOME
    assert together.rows_of([*SOME, "ice"]).tolist() == [*range(len(SOME)), -1]
    assert Words.of([]) + Words.of(["a"]) == Words.of(["a"]) + Words.of([]) == ["a"]


def test_repeated_words_are_found_even_among_equal_hashes():
    blob, offsets = module.pack(["a", "b", "a", "c", "b", "a"])
    for hashes in (module.hash_words(blob, offsets), np.zeros(6, dtype=np.uint64)):
        repeated, first = module.repeated_rows(blob, offsets, hashes, np.argsort(hashes))
        assert (repeated.tolist(), first.tolist()) == ([2, 4, 5], [0, 1, 0])


def test_hashes_do_not_depend_on_the_block_size(monkeypatch):
    many = [f"{value:x}" * (value % 5) + str(value) for value in range(1000)]
    expected = module.hash_words(*module.pack(many))
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert np.array_equal(module.hash_words(*module.pack(many)), expected)
    assert [int(hash_) for hash_ in expected[:50]] == [slow_hash(word) for word in many[:50]]


def test_another_process_with_another_hash_seed_gives_the_same_hashes_and_loads_no_extra():
    program = (
        "import sys; from frostline.vectors.words import *;"
        "print(hash_words(*pack(['frost', 'line', 'ı'])).tolist(), 'polars' in sys.modules, 'gensim' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{[slow_hash(word) for word in ('frost', 'line', 'ı')]} False False"


def test_words_survive_pickling_to_a_worker():
    assert pickle.loads(pickle.dumps(Words.of(SOME))) == SOME


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("frost", "words: 'frost' is one string, not a sequence of strings. Pass `[word]`."),
        (["a", None], "words: expected strings, got None of type NoneType at index 1."),
        ([b"a"], "words: expected strings, got b'a' of type bytes at index 0."),
    ],
)
def test_an_error_names_the_value_that_is_not_a_string_and_its_index(words, says):
    for use in (Words.of, Words.of(["a"]).rows_of):
        with pytest.raises(TypeError) as error:
            use(words)
        assert str(error.value) == says
