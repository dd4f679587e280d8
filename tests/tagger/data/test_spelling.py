"""The word shape keeps what lower case hides, and a token of any length has the same number of bytes."""

from __future__ import annotations

import pytest

from frostline.tagger.data.spelling import MAX_BYTES, NO_BYTE, WORD_SHAPES, token_bytes, word_shape


@pytest.mark.parametrize(
    ("token", "other"),
    [
        ("word", "Word"), ("Word", "WORD"), ("WORD", "W"), ("iPad", "word"), ("IPad", "Ipad"), ("42", "b2b"),
        ("@me", "#me"), ("#me", "me"), ("http://a.b", "a"), ("...", "word"), ("...", "😀"), ("@", "@me"),
    ],
)  # fmt: skip
def test_shape_tells_apart_what_lower_case_hides(token: str, other: str) -> None:
    assert word_shape(token) != word_shape(other)


@pytest.mark.parametrize("token", ["", " ", "a", "A", "É", "文", "1", "½", "-", "😀", "n't", "McDonald", "ǅ", "x" * 99])
def test_every_token_has_a_shape_within_the_table(token: str) -> None:
    assert 1 <= word_shape(token) < WORD_SHAPES


def test_of_a_long_token_the_first_and_the_last_half_are_read_and_a_short_one_is_filled_up() -> None:
    long, short = token_bytes(["https://example.org/of/no/interest.html", "n\u00e9"])
    assert bytes(long.tolist()) == b"https://example.no/interest.html"
    assert bytes(short.tolist()) == "n\u00e9".encode().ljust(MAX_BYTES, bytes([NO_BYTE]))
