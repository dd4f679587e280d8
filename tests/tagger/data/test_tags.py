"""Entities come back from every scheme they are written in, and an error names the index of a contradiction."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.tagger import Span
from frostline.tagger.data.tags import SCHEMES, Scheme, detect_scheme, read_tags, write_tags

GAPS_AND_ENTITIES = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from(["a", "LUX-ES", "x-y"])), max_size=6
)


def _sentence(parts: list[tuple[int, int, str]]) -> tuple[list[Span], int]:
    found, end = [], 0
    for gap, length, kind in parts:
        found.append(Span(kind, end + gap, end + gap + length))
        end += gap + length
    return found, end + 1


@given(GAPS_AND_ENTITIES, st.sampled_from(SCHEMES))
def test_what_is_written_in_a_scheme_is_read_again(parts: list[tuple[int, int, str]], scheme: Scheme) -> None:
    entities, length = _sentence(parts)
    tags = write_tags(entities, length, scheme)
    assert len(tags) == length
    assert read_tags(tags, scheme) == entities


@given(st.lists(GAPS_AND_ENTITIES, max_size=4), st.sampled_from(SCHEMES))
def test_the_detected_scheme_reads_what_another_wrote(
    sentences: list[list[tuple[int, int, str]]], scheme: Scheme
) -> None:
    made = [_sentence(parts) for parts in sentences]
    written = [write_tags(entities, length, scheme) for entities, length in made]
    detected = detect_scheme(written)
    assert [read_tags(tags, detected) for tags in written] == [entities for entities, _ in made]
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
def test_each_scheme_is_written_as_its_definition_says(scheme: Scheme, tags: str) -> None:
    entities = [Span("a", 0, 1), Span("a", 1, 2), Span("b", 2, 3), Span("a", 4, 6)]
    assert write_tags(entities, 6, scheme) == tags.split()
    assert detect_scheme([tags.split()]) == scheme


def test_tags_that_are_valid_in_neither_iob1_nor_iob2_are_read_by_the_rule_of_both() -> None:
    tags = ["B-a", "O", "I-b", "I-b", "I-a"]
    assert detect_scheme([tags]) == "IOB2"
    assert read_tags(tags, "IOB2") == [Span("a", 0, 1), Span("b", 2, 4), Span("a", 4, 5)]


@pytest.mark.parametrize(
    ("tags", "index"),
    [("B-a B-a E-a", 1), ("B-a O", 1), ("I-a E-a", 0), ("O E-a", 1), ("B-a E-b", 1), ("S-a B-a I-a", 2)],
)
def test_an_error_names_the_index_of_a_contradiction_in_both_schemes(tags: str, index: int) -> None:
    for scheme, text in (("BIOES", tags), ("BILOU", tags.replace("E-", "L-").replace("S-", "U-"))):
        with pytest.raises(ValueError, match=r"an entity|after no B-") as caught:
            read_tags(text.split(), scheme)  # type: ignore[arg-type]
        assert caught.value.args[0] == index
