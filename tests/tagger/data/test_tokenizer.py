"""Text becomes tokens as the labelled files have them, and what is split already stays."""

from __future__ import annotations

import pytest

from frostline.tagger import tokenize


def _split(text: str) -> list[str]:
    return [token.text for token in tokenize(text)]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", ""),
        ("  \t ", ""),
        ("Ada lives in London.", "Ada lives in London ."),
        ("I'm sure they'll say it isn't Ada's", "I 'm sure they 'll say it is n't Ada 's"),
        ("I\u2019m", "I \u2019m"),
        ("(see: \"this\")", '( see : " this " )'),
        ("@me, #tag! www.a.org/b?c=d.", "@me , #tag ! www.a.org/b?c=d ."),
        ("The U.S. and 3.5 e-mails ... :) -- 50%", "The U.S. and 3.5 e-mails ... :) -- 50 %"),
        ("love\u2764\ufe0f! caf\u00e9\u00a0bar", "love \u2764\ufe0f ! caf\u00e9 bar"),
        ("one\u2028two", "one two"),
    ],
)  # fmt: skip
def test_text_is_split_as_a_reader_would(text: str, tokens: str) -> None:
    assert _split(text) == tokens.split()


@pytest.mark.parametrize("text", ["do n't , Ada 's \" :) ... @me #a http://a.b/c U.S. 3.5 ( )", "a - b & c / d"])
def test_tokens_with_blanks_between_them_pass_unchanged(text: str) -> None:
    assert _split(text) == text.split()


def test_a_long_line_of_one_kind_takes_no_time_to_speak_of() -> None:
    assert _split("a" * 100_000 + "!") == ["a" * 100_000, "!"]
    assert "".join(_split("'" * 50_000 + "a" + "'" * 50_000)) == "'" * 50_000 + "a" + "'" * 50_000
