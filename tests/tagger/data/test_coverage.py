"""Tokens are counted by the way they find a vector."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from frostline.tagger import look_up
from frostline.vectors import Words


@pytest.mark.parametrize("words", [{"A", "a", "b", "c"}, Words.of(["A", "a", "b", "c"])], ids=["set", "packed"])
def test_a_token_is_counted_once_as_written_before_lower_case(words: Collection[str]) -> None:
    found = look_up(["A", "a", "A", "B", "c", "lol", "lol", "RT"], words)
    assert (found.written, found.lowered, found.without) == (4, 1, 3)
    assert found.missing == ("lol", "RT")
    assert found.share == 5 / 8


def test_a_text_without_tokens_has_a_share_of_nothing_and_no_division_by_zero() -> None:
    assert str(look_up([], {"a"})) == "0.0% of the tokens have a vector (0.0% as written, 0.0% in lower case)"
