"""Entity scores agree with cases counted by hand and with a slow second definition."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.tagger import Span, score, spans

TAG = st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b"])
TAGS = st.lists(TAG, max_size=8)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("", []),
        ("O O", []),
        ("B-a I-a I-a", [("a", 0, 3)]),
        ("B-a B-a", [("a", 0, 1), ("a", 1, 2)]),
        ("O I-a I-a O", [("a", 1, 3)]),
        ("B-a I-b I-b", [("a", 0, 1), ("b", 1, 3)]),
        ("I-a B-a", [("a", 0, 1), ("a", 1, 2)]),
        ("B-creative-work I-creative-work O", [("creative-work", 0, 2)]),
    ],
)
def test_entities_are_read_as_the_fields_scorers_read_them(tags: str, found: list[Span]) -> None:
    assert spans(tags.split()) == found


@given(TAGS)
def test_an_entity_is_every_stretch_that_starts_somewhere_and_goes_on_with_its_own_type(tags: list[str]) -> None:
    def starts(index: int) -> bool:
        kind = tags[index][2:]
        return tags[index][0] == "B" or (tags[index][0] == "I" and (index == 0 or tags[index - 1][2:] != kind))

    def goes_on(index: int, kind: str) -> bool:
        return index < len(tags) and tags[index] == f"I-{kind}"

    slow = [
        (tags[start][2:], start, end)
        for start in range(len(tags))
        for end in range(start + 1, len(tags) + 1)
        if starts(start)
        and all(goes_on(index, tags[start][2:]) for index in range(start + 1, end))
        and not goes_on(end, tags[start][2:])
    ]
    assert spans(tags) == slow


def test_scores_count_what_a_person_counts() -> None:
    gold = [["B-a", "I-a", "O", "B-b"], ["B-a", "O"], ["O"]]
    predicted = [["B-a", "I-a", "O", "B-a"], ["O", "B-b"], ["O"]]
    found = score(gold, predicted)
    assert (found.correct, found.predicted, found.gold) == (1, 3, 3)
    assert found.precision == found.recall == 1 / 3
    assert found.f1 == pytest.approx(1 / 3)
    assert list(found.per_type) == ["a", "b"]
    assert (found.per_type["a"].precision, found.per_type["a"].recall) == (1 / 2, 1 / 2)
    assert (found.per_type["b"].correct, found.per_type["b"].predicted, found.per_type["b"].gold) == (0, 1, 1)


def test_a_part_of_an_entity_or_another_type_does_not_match() -> None:
    assert score([["B-a", "I-a"]], [["B-a", "O"]]).correct == 0
    assert score([["B-a"]], [["B-b"]]).correct == 0
    assert score([["B-a"]], [["I-a"]]).correct == 1


def test_nothing_to_find_and_nothing_found_scores_zero() -> None:
    assert score([["O"]], [["O"]]).to_dict() == {
        "overall_precision": 0.0,
        "overall_recall": 0.0,
        "overall_f1": 0.0,
        "overall_accuracy": 1.0,
    }
    assert score([], []).accuracy == 0.0


def test_the_dictionary_holds_fractions_under_the_names_of_the_metric_seqeval() -> None:
    assert score([["B-a", "B-a", "O", "O"]], [["B-a", "O", "O", "B-b"]]).to_dict() == {
        "a": {"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "number": 2},
        "b": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "number": 0},
        "overall_precision": 0.5,
        "overall_recall": 0.5,
        "overall_f1": 0.5,
        "overall_accuracy": 0.5,
    }


@given(st.lists(st.lists(st.tuples(TAG, TAG), max_size=8), max_size=4))
def test_what_counts_as_correct_are_the_entities_that_both_sides_have(pairs: list[list[tuple[str, str]]]) -> None:
    gold, predicted = ([[pair[side] for pair in sentence] for sentence in pairs] for side in (0, 1))
    entities = [
        {(sentence, *span) for sentence, tags in enumerate(side) for span in spans(tags)} for side in (gold, predicted)
    ]
    found = score(gold, predicted)
    assert (found.correct, found.predicted, found.gold) == (
        len(entities[0] & entities[1]),
        len(entities[1]),
        len(entities[0]),
    )
    assert sum(part.correct for part in found.per_type.values()) == found.correct


def test_a_score_prints_a_table_with_a_line_for_each_type_and_one_for_all() -> None:
    found = score([["B-a", "O", "B-long", "B-a"]] * 1000, [["B-a", "O", "O", "O"]] * 1000)
    assert str(found) == (
        "type  precision  recall     F1   gold  found\n"
        "--------------------------------------------\n"
        "a        100.0%   50.0%  66.7%  2,000  1,000\n"
        "long       0.0%    0.0%   0.0%  1,000      0\n"
        "--------------------------------------------\n"
        "all      100.0%   33.3%  50.0%  3,000  1,000"
    )


def test_sentences_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("predicted: sentence 1 has 1 tags, its gold tags are 2")):
        score([["O"], ["O", "O"]], [["O"], ["O"]])
