"""What a build expects, compared with what was found; tests of the command are in tests/cli."""

import pytest

from frostline.probe.explain.expected import Expected, differences


def finding(verdict, groups=None):
    return {"weight": {"verdict": verdict, "where": None, "groups": groups}}


@pytest.mark.parametrize(
    ("found", "expected", "lines"),
    [
        (finding("learns in part", {"learns": 1_500, "frozen by plan": 5}), Expected("learns in part", 1_500), []),
        (finding("learns in part", {"learns": 1_500}), Expected("learns in part", None), []),
        (
            finding("learns in part", {"learns": 1_500, "zero gradient": 1}),
            Expected("learns in part", 2),
            ["weight: 1,501 learn, expected: 2"],
        ),
        (finding("cut"), Expected("cut", 3), []),  # partial when the file was written, whole now
        (finding("cut"), Expected("learns", 3), ["weight: cut, expected: learns"]),
    ],
)
def test_verdicts_are_compared_and_counts_where_both_have_one(found, expected, lines):
    assert differences(found, {"weight": expected}) == lines
    assert differences(found, {"we*": expected}) == lines
