"""The words, and which of them is the verdict."""

import itertools

import pytest

from frostline.probe.explain.verdicts import ALARMS, VERDICTS, Seen, words_for

LEARNING = {
    "requires_grad": True,
    "by_plan": False,
    "gradient": "numbers",
    "awake": False,
    "finite": True,
    "reaches": True,
    "held": 1,
    "rates": [0.1],
    "moved": True,
    "in_part": False,
    "frozen_part_moved": False,
}


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ({}, ["learns"]),
        ({"in_part": True}, ["learns in part"]),
        ({"held": None, "rates": [], "moved": None}, ["learns"]),
        ({"requires_grad": False, "gradient": "none", "moved": False}, ["frozen"]),
        ({"requires_grad": False, "gradient": "none", "moved": False, "by_plan": True}, ["frozen by plan"]),
        ({"requires_grad": False, "gradient": "none"}, ["moves without gradient", "frozen"]),
        ({"requires_grad": False, "gradient": "none", "by_plan": True}, ["moves without gradient", "frozen by plan"]),
        ({"finite": False}, ["not finite"]),
        ({"gradient": "none", "moved": False}, ["cut"]),
        ({"gradient": "none", "moved": False, "finite": False}, ["not finite", "cut"]),
        ({"gradient": "none", "moved": False, "reaches": False}, ["unused"]),
        ({"gradient": "none", "moved": False, "held": 0, "rates": []}, ["cut", "not in optimizer"]),
        ({"gradient": "none"}, ["cut", "moves without gradient"]),
        ({"gradient": "none", "reaches": False}, ["unused", "moves without gradient"]),
        ({"held": 0, "rates": [], "moved": False}, ["not in optimizer"]),
        ({"held": 0, "rates": [], "moved": False, "gradient": "zero"}, ["not in optimizer", "zero gradient"]),
        ({"rates": [0.0], "moved": False}, ["learning rate 0"]),
        ({"rates": [0.0], "moved": False, "gradient": "zero"}, ["learning rate 0", "zero gradient"]),
        ({"rates": [0.0, 0.1]}, ["learns"]),
        ({"gradient": "zero", "moved": False}, ["zero gradient"]),
        ({"gradient": "zero"}, ["moves without gradient", "zero gradient"]),
        ({"gradient": "zero", "awake": True}, ["learns", "zero gradient"]),
        ({"gradient": "zero", "awake": True, "moved": False}, ["learns", "zero gradient"]),
        ({"gradient": "zero", "awake": True, "held": 0, "rates": [], "moved": False}, ["not in optimizer"]),
        ({"moved": False}, ["rounds away"]),
        ({"moved": False, "in_part": True}, ["rounds away"]),
        ({"moved": None}, ["learns"]),
        ({"in_part": True, "frozen_part_moved": True}, ["moves without gradient", "learns in part"]),
    ],
)
def test_the_first_word_that_holds_is_the_verdict(seen, words):
    assert words_for(Seen(**LEARNING | seen)) == words


def test_whatever_is_seen_there_is_a_verdict_and_notes_stand_in_order():
    choices = itertools.product(
        *([True, False] for _ in range(5)),
        ["none", "zero", "numbers"],
        [(None, []), (0, []), (1, [0.0]), (2, [1.0, 1.0])],
    )
    for requires_grad, by_plan, finite, reaches, in_part, gradient, (held, rates) in choices:
        for moved in (None, False, True):
            words = words_for(
                Seen(requires_grad, by_plan, gradient, False, finite, reaches, held, rates, moved, in_part, False)
            )
            assert set(words) <= set(VERDICTS)
            places = [VERDICTS.index(word) for word in words]
            assert places == sorted(places) or words[0] == "moves without gradient"


def test_eight_words_are_alarms():
    assert set(VERDICTS) - ALARMS == {"learns", "learns in part", "frozen by plan", "frozen"}
