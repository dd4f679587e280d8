"""Tokens and entities keep their positions in the text, and a tagged text is shown in every form."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from frostline.tagger import Tagged, spans, tokenize

TEXT = "Zoë's in New York!"


def _tagged() -> Tagged:
    return Tagged(TEXT, tokenize(TEXT), ["B-person", "O", "O", "B-place", "I-place", "O"])


@given(st.text())
@example("I\u2019m n't @@me #a  (U.S.)\u2028\U0001f468\u200d\U0001f469\x1c\x00 e\u0301 \ufeffx\r")
@example("\U0001d54f\u0130's \u202e've")
def test_every_token_is_the_piece_of_the_text_at_its_position_and_only_blanks_are_left_out(text: str) -> None:
    end = 0
    for token in tokenize(text):
        assert token.text == text[token.start : token.end] != ""
        assert not text[end : token.start].strip()
        assert token.start >= end
        end = token.end
    assert not text[end:].strip()


def test_a_record_says_where_tokens_and_entities_are_in_the_text() -> None:
    record = _tagged().to_dict()
    assert json.loads(json.dumps(record)) == record
    assert record == {
        "text": TEXT,
        "tokens": ["Zoë", "'s", "in", "New", "York", "!"],
        "tags": ["B-person", "O", "O", "B-place", "I-place", "O"],
        "offsets": [[0, 3], [3, 5], [6, 8], [9, 12], [13, 17], [17, 18]],
        "entities": [
            {"type": "person", "text": "Zoë", "start": 0, "end": 3, "token_start": 0, "token_end": 1},
            {"type": "place", "text": "New York", "start": 9, "end": 17, "token_start": 3, "token_end": 5},
        ],
    }


def test_an_entity_is_as_it_was_written_whatever_blanks_are_in_it() -> None:
    text = " New \u00a0York's"
    (entity,) = Tagged(text, tokenize(text), ["B-place", "I-place", "O"]).entities
    assert text[entity.start : entity.end] == entity.text == "New \u00a0York"


@pytest.mark.parametrize(
    ("scheme", "tags"),
    [("IOB1", "I-person O O I-place I-place O"), ("BIOES", "S-person O O B-place E-place O")],
)
def test_tags_are_given_in_the_scheme_that_is_asked_for(scheme: str, tags: str) -> None:
    assert _tagged().to_dict(scheme)["tags"] == tags.split()  # type: ignore[arg-type]


def test_invalid_tags_are_given_as_the_entities_that_they_are_read_as() -> None:
    tagged = Tagged("a b", tokenize("a b"), ["O", "I-x"])
    assert tagged.to_dict()["tags"] == ["O", "B-x"]
    assert spans(tagged.tags) == spans(tagged.to_dict()["tags"])


def test_in_colour_the_text_is_whole_and_each_type_has_its_own() -> None:
    types = [f"type{i}" for i in range(5)] + ["person", "place"]
    shown = _tagged().colored(types)
    assert shown == "\x1b[1;31mZoë\x1b[0;31m/person\x1b[0m's in \x1b[1;36mNew York\x1b[0;36m/place\x1b[0m!"


def test_tokens_are_joined_by_blanks_where_there_was_no_text() -> None:
    tagged = Tagged.from_tokens(["New", "", "York"], ["B-a", "I-a", "I-a"])
    assert tagged.text == "New  York"
    assert [tagged.text[token.start : token.end] for token in tagged.tokens] == ["New", "", "York"]
    assert [entity.text for entity in tagged.entities] == ["New  York"]
