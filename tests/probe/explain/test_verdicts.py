"""The verdicts, and which of them counts."""

import itertools

import pytest

from frostline.probe.explain.verdicts import ALARMS, VERDICTS, Evidence, verdicts_for

LEARNING = {
    "requires_grad": True,
    "by_plan": False,
    "gradient": "nonzero",
    "nonzero_after_step": False,
    "finite": True,
    "reaches_loss": True,
    "listings": 1,
    "learning_rates": [0.1],
    "moved": True,
    "in_part": False,
    "frozen_part_moved": False,
}
UNLISTED = {"listings": 0, "learning_rates": []}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["learns"]),
        ({"in_part": True}, ["learns in part"]),
        ({"listings": None, "learning_rates": [], "moved": None}, ["learns"]),
        ({"requires_grad": False, "gradient": "none", "moved": False}, ["frozen"]),
        ({"requires_grad": False, "gradient": "none", "moved": False, "by_plan": True}, ["frozen by plan"]),
        ({"requires_grad": False, "gradient": "none"}, ["moves without gradient", "frozen"]),
        ({"requires_grad": False, "gradient": "none", "by_plan": True}, ["moves without gradient", "frozen by plan"]),
        ({"finite": False}, ["not finite"]),
        ({"gradient": "none", "moved": False}, ["cut"]),
        ({"gradient": "none", "moved": False, "finite": False}, ["not finite", "cut"]),
        ({"gradient": "none", "moved": False, "reaches_loss": False}, ["unused"]),
        (UNLISTED | {"gradient": "none", "moved": False}, ["frozen", "cut", "not in optimizer"]),
        ({"gradient": "none"}, ["cut", "moves without gradient"]),
        ({"gradient": "none", "reaches_loss": False}, ["unused", "moves without gradient"]),
        (UNLISTED | {"moved": False}, ["not in optimizer"]),
        (UNLISTED | {"moved": False, "gradient": "zero"}, ["not in optimizer", "zero gradient"]),
        ({"learning_rates": [0.0], "moved": False}, ["learning rate 0"]),
        ({"learning_rates": [0.0], "moved": False, "gradient": "zero"}, ["learning rate 0", "zero gradient"]),
        ({"learning_rates": [0.0, 0.1]}, ["learns"]),
        ({"gradient": "zero", "moved": False}, ["zero gradient"]),
        ({"gradient": "zero"}, ["moves without gradient", "zero gradient"]),
        ({"gradient": "zero", "nonzero_after_step": True}, ["learns", "zero gradient"]),
        ({"gradient": "zero", "nonzero_after_step": True, "moved": False}, ["learns", "zero gradient"]),
        (UNLISTED | {"gradient": "zero", "nonzero_after_step": True, "moved": False}, ["not in optimizer"]),
        ({"moved": False}, ["rounds away"]),
        ({"moved": False, "in_part": True}, ["rounds away"]),
        ({"moved": None}, ["learns"]),
        ({"in_part": True, "frozen_part_moved": True}, ["moves without gradient", "learns in part"]),
    ],
)
def test_the_first_verdict_that_applies_counts(changes, expected):
    assert verdicts_for(Evidence(**LEARNING | changes)) == expected


def test_for_any_evidence_there_is_a_verdict_and_the_notes_are_in_order():
    choices = itertools.product(
        *([True, False] for _ in range(5)),
        ["none", "zero", "nonzero"],
        [(None, []), (0, []), (1, [0.0]), (2, [1.0, 1.0])],
    )
    for requires_grad, by_plan, finite, reaches, in_part, gradient, listings in choices:
        for moved in (None, False, True):
            found = verdicts_for(
                Evidence(requires_grad, by_plan, gradient, False, finite, reaches, *listings, moved, in_part, False)
            )
            assert set(found) <= set(VERDICTS)
            order = [VERDICTS.index(verdict) for verdict in found]
            assert order == sorted(order) or found[0] == "moves without gradient"


def test_eight_verdicts_are_alarms():
    assert set(VERDICTS) - ALARMS == {"learns", "learns in part", "frozen by plan", "frozen"}
