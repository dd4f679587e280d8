"""Entities come back from every scheme they are written in, and a contradiction is named by its place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.tagger import Span
from frostline.tagger.data import tags as schemes

GAPS_AND_ENTITIES = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from(["a", "b", "x-y"])), max_size=6
)


def _sentence(parts: list[tuple[int, int, str]]) -> tuple[list[Span], int]:
    found, place = [], 0
    for gap, length, kind in parts:
        found.append(Span(kind, place + gap, place + gap + length))
        place += gap + length
    return found, place + 1


@given(GAPS_AND_ENTITIES, st.sampled_from(schemes.SCHEMES))
def test_what_is_written_in_a_scheme_is_read_again(parts: list[tuple[int, int, str]], scheme: schemes.Scheme) -> None:
    entities, length = _sentence(parts)
    tags = schemes.write(entities, length, scheme)
    assert len(tags) == length
    assert schemes.read(tags, scheme) == entities


@given(st.lists(GAPS_AND_ENTITIES, max_size=4), st.sampled_from(schemes.SCHEMES))
def test_the_detected_scheme_reads_what_another_wrote(
    sentences: list[list[tuple[int, int, str]]], scheme: schemes.Scheme
) -> None:
    made = [_sentence(parts) for parts in sentences]
    written = [schemes.write(entities, length, scheme) for entities, length in made]
    detected = schemes.detect(written)
    assert [schemes.read(tags, detected) for tags in written] == [entities for entities, _ in made]
    if scheme in ("BIOES", "BILOU") and any(sentences):
        assert detected == scheme


@pytest.mark.parametrize(
    ("scheme", "tags"),
    [
        ("IOB1", "I-a B-a I-b O I-a I-a"),
        ("IOB2", "B-a B-a B-b O B-a I-a"),
        ("BIOES", "S-a S-a S-b O B-a E-a"),
        ("BILOU", "U-a U-a U-b O B-a L-a"),
    ],
)
def test_each_scheme_is_written_as_its_definition_says(scheme: schemes.Scheme, tags: str) -> None:
    entities = [Span("a", 0, 1), Span("a", 1, 2), Span("b", 2, 3), Span("a", 4, 6)]
    assert schemes.write(entities, 6, scheme) == tags.split()
    assert schemes.detect([tags.split()]) == scheme


def test_tags_that_neither_iob1_nor_iob2_allows_are_read_by_the_rule_of_both() -> None:
    tags = ["B-a", "O", "I-b", "I-b", "I-a"]
    assert schemes.detect([tags]) == "IOB2"
    assert schemes.read(tags, "IOB2") == [Span("a", 0, 1), Span("b", 2, 4), Span("a", 4, 5)]


@pytest.mark.parametrize(
    ("tags", "place"),
    [("B-a B-a E-a", 1), ("B-a O", 1), ("I-a E-a", 0), ("O E-a", 1), ("B-a E-b", 1), ("S-a B-a I-a", 2)],
)
def test_a_contradiction_is_named_by_its_place_in_both_schemes(tags: str, place: int) -> None:
    for scheme, text in (("BIOES", tags), ("BILOU", tags.replace("E-", "L-").replace("S-", "U-"))):
        with pytest.raises(ValueError, match=r"an entity|after no B-") as caught:
            schemes.read(text.split(), scheme)  # type: ignore[arg-type]
        assert caught.value.args[0] == place
