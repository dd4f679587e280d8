"""Words and tokens are counted by the way they find a vector, and the missing words are listed by frequency."""

from __future__ import annotations

from collections import Counter

from frostline.vectors import Vectors, cover

VECTORS = Vectors(["ice", "snow"], [[1.0], [2.0]])


def test_words_and_tokens_are_counted_and_missing_words_keep_their_order() -> None:
    found = cover(["slush", "ice", "Snow", "rain", "ice"], VECTORS)
    assert (found.words, found.found_words, found.tokens, found.found_tokens) == (4, 1, 5, 2)
    assert (found.as_written, found.in_lower_case, found.share) == (2, 0, 0.4)
    assert found.missing == ["slush", "Snow", "rain"]
    line = "1 of 4 words have a vector (40.0% of the tokens); missing: slush, Snow, rain"
    assert str(found) == f"{line}; 20.0% more in lower case: pass lowercase=True"


def test_a_word_in_lower_case_counts_if_it_is_asked_for() -> None:
    assert cover(["ICE", "Snow", "Rain"], VECTORS, lowercase=True).missing == ["Rain"]


def test_a_token_is_counted_once_as_written_before_lower_case() -> None:
    vectors = Vectors(["A", "a", "b", "c"], [[1.0]] * 4)
    found = cover(["A", "a", "A", "B", "c", "RT", "lol", "lol"], vectors, lowercase=True)
    assert (found.as_written, found.in_lower_case, found.tokens) == (4, 1, 8)
    assert (found.words, found.found_words) == (6, 4)
    assert found.missing == ["lol", "RT"]
    assert found.share == 5 / 8
    assert str(found) == (
        "4 of 6 words have a vector (62.5% of the tokens, 12.5% only in lower case); missing: lol, RT"
    )


def test_the_most_frequent_of_the_missing_come_first() -> None:
    found = cover(["a", "b", "A", "c", "c", "a"], Vectors(["a", "x"], [[1.0], [2.0]]), lowercase=True)
    assert (found.words, found.tokens, found.found_words, found.found_tokens) == (4, 6, 2, 3)
    assert found.missing == ["c", "b"]


def test_counted_words_are_those_that_are_repeated() -> None:
    words = ["slush", "ice", "Snow", "rain", "ice", "rain"]
    assert cover(Counter(words), VECTORS, lowercase=True) == cover(words, VECTORS, lowercase=True)


def test_many_missing_words_are_cut_short_when_printed() -> None:
    found = cover([f"w{index}" for index in range(1234)], VECTORS)
    assert str(found).endswith("missing: w0, w1, w2, w3, w4, w5, w6, w7, w8, w9 and 1,224 more")


def test_nothing_missing_and_nothing_asked() -> None:
    assert str(cover(["ice"], VECTORS)) == "1 of 1 words have a vector (100.0%)"
    assert str(cover([], VECTORS)) == "0 of 0 words have a vector (100.0%)"


def test_a_hint_says_what_lower_case_would_find() -> None:
    found = cover(["ice", "Snow", "Snow", "rain"], VECTORS)
    assert (found.found_tokens, found.lower_case_finds) == (1, 2)
    assert str(found).endswith("missing: Snow, rain; 50.0% more in lower case: pass lowercase=True")
    assert cover(["ice", "Snow", "rain"], VECTORS, lowercase=True).hint == ""
    assert cover(["ice", "rain"], VECTORS).hint == ""
