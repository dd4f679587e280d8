"""Every error has one kind and is counted once; surface F1 counts each name once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.tagger import analyse, score, spans, surface_score
from frostline.tagger.scoring.error_analysis import unknown_types

TAG = st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b"])
CORPUS = st.lists(st.lists(st.tuples(TAG, TAG), max_size=8), max_size=4)


@pytest.mark.parametrize(
    ("gold", "predicted", "kinds"),
    [
        ("B-a I-a O", "B-a I-a O", ["right"]),
        ("B-a I-a O", "O O O", ["missed"]),
        ("O O O", "B-a I-a O", ["invented"]),
        ("B-a I-a O", "B-b I-b O", ["type"]),
        ("B-a I-a O", "B-a O O", ["bounds"]),
        ("B-a I-a O", "O B-b I-b", ["both"]),
        ("B-a I-a O", "O O B-a", ["missed", "invented"]),
        ("B-a I-a I-a", "B-b B-a I-a", ["bounds"]),
        ("B-a B-b O", "B-b I-b I-b", ["both", "bounds"]),
        ("B-a B-b O", "O B-b O", ["missed", "right"]),
    ],
)
def test_each_error_has_the_kind_a_reader_would_give_it(gold: str, predicted: str, kinds: list[str]) -> None:
    found = analyse([["x", "y", "z"]], [gold.split()], [predicted.split()])
    assert [pair.kind for pair in found.pairs] == kinds
    assert found.kinds.total() == len([kind for kind in kinds if kind != "right"])


@given(CORPUS)
def test_every_gold_entity_is_in_one_pair_and_right_ones_are_those_that_score_counts(
    corpus: list[list[tuple[str, str]]],
) -> None:
    gold, predicted = ([[pair[side] for pair in sentence] for sentence in corpus] for side in (0, 1))
    tokens = [["x"] * len(sentence) for sentence in corpus]
    found = analyse(tokens, gold, predicted)
    counted = score(gold, predicted)
    assert sum(bool(pair.gold) for pair in found.pairs) == counted.gold
    assert sum(pair.kind == "right" for pair in found.pairs) == counted.correct
    assert found.confusion.total() == len(found.pairs)
    for kind, part in counted.per_type.items():
        assert sum(times for (right, _), times in found.confusion.items() if right == kind) == part.gold
    invented = [pair for pair in found.pairs if pair.kind == "invented"]
    alone = sum(
        all(tag == "O" for tag in tags[span.start : span.end])
        for tags, guess in zip(gold, predicted, strict=True)
        for span in spans(guess)
    )
    assert len(invented) == alone


def test_the_most_frequent_and_the_longest_errors_come_first_and_right_ones_never() -> None:
    tokens = [["Oz"], ["New", "York", "City"], ["Oz"], ["Rome"]]
    gold = [["B-a"], ["B-a", "I-a", "I-a"], ["B-a"], ["B-a"]]
    predicted = [["O"], ["O", "B-b", "I-b"], ["O"], ["B-a"]]
    found = analyse(tokens, gold, predicted)
    assert [(times, str(pair)) for times, pair in found.frequent(1)] == [(2, "missed    a: 'Oz'")]
    assert [str(pair) for pair in found.longest(2)] == [
        "both      a: 'New York City', found 'York City' as b",
        "missed    a: 'Oz'",
    ]
    assert [pair.sentence for pair in found.longest(9)] == [1, 0, 2]


def test_surface_f1_counts_a_name_once_and_a_name_of_another_type_or_case_again() -> None:
    tokens = [["Oz", "Oz", "is", "oz"], ["New", "York", "Oz"]]
    gold = [["B-a", "B-b", "O", "B-a"], ["B-a", "I-a", "B-a"]]
    predicted = [["B-a", "B-a", "O", "O"], ["B-a", "O", "O"]]
    found = surface_score(tokens, gold, predicted)
    assert (found.correct, found.predicted, found.gold) == (1, 2, 4)  # a Oz; a Oz, a New; a Oz, b Oz, a oz, a New York
    assert (found.per_type["a"].gold, found.per_type["b"].predicted) == (3, 0)


def test_the_confusion_table_has_a_row_and_a_column_for_each_type_and_one_for_no_partner() -> None:
    gold = [["B-b", "O", "B-a"]] * 12 + [["B-b", "O", "O"]]
    found = analyse([["x", "y", "z"]] * 13, gold, [["B-a", "B-b", "O"]] * 13)  # b as a, b invented, a missed
    assert found.confusion_table() == {
        "types": ["a", "b"],
        "rows": "gold",
        "columns": "predicted",
        "counts": [[0, 0, 12], [13, 0, 0], [0, 13, 0]],
    }
    assert analyse([["x"]], [["O"]], [["O"]]).confusion_table()["counts"] == [[0]]


@given(CORPUS)
def test_the_confusion_table_holds_every_pair(corpus: list[list[tuple[str, str]]]) -> None:
    gold, predicted = ([[pair[side] for pair in sentence] for sentence in corpus] for side in (0, 1))
    found = analyse([["x"] * len(sentence) for sentence in corpus], gold, predicted)
    table = found.confusion_table()
    assert sum(map(sum, table["counts"])) == len(found.pairs)
    assert table["counts"][-1][-1] == 0
    assert sum(row[-1] for row in table["counts"]) == found.kinds["missed"]
    assert sum(table["counts"][-1]) == found.kinds["invented"]


def test_entities_that_no_known_tag_can_name_are_counted_by_type() -> None:
    assert unknown_types(["O", "B-a"], [["B-a", "I-c", "I-c"], ["B-c", "B-b"]]) == {"c": 2, "b": 1}
    assert not unknown_types(["O", "I-a"], [["B-a"], ["O"]])
