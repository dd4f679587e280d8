"""What callbacks have in common: one explanation of what several processes saw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from frostline.probe.explain.explanation import Explanation
from frostline.probe.explain.ranks import merged, of_all_ranks
from frostline.probe.explain.verdicts import Finding

SCRIPT = Path(__file__).with_name("explain_in_two_processes.py")


def of_rank(verdict: str, reason: str = "", remarks: tuple[str, ...] = ()) -> Explanation:
    return Explanation([Finding("weight", (), (2,), (verdict,), reason)], [], remarks)


@pytest.mark.parametrize(
    ("verdicts", "verdict", "reason"),
    [
        (["learns", "learns"], "learns", ""),
        (["learns", "unused"], "learns", "unused on rank 1"),
        (["zero gradient", "learns", "cut"], "learns", "zero gradient on rank 0; cut on rank 2"),
        (["unused", "unused"], "unused", ""),
        (["learns", "not in optimizer"], "not in optimizer", "(on rank 1)"),
        (["learns", "unused", "not finite"], "not finite", "(on rank 2)"),
        (["zero gradient", "cut"], "cut", "(on rank 1)"),
        (["frozen", "learns"], "frozen", "(on rank 0)"),
    ],
)
def test_what_a_batch_does_not_reach_another_may_and_all_else_counts(
    verdicts: list[str], verdict: str, reason: str
) -> None:
    (found,) = merged([of_rank(each) for each in verdicts]).findings
    assert (found.verdict, found.reason) == (verdict, reason)


def test_remarks_of_other_processes_are_theirs() -> None:
    assert merged([of_rank("learns"), of_rank("learns", remarks=("It rains.",))]).remarks == ("Rank 1: It rains.",)


def test_one_process_alone_asks_nobody() -> None:
    explanation = of_rank("learns")
    assert of_all_ranks(explanation) is explanation


def test_what_any_of_two_processes_finds_is_in_the_table_of_the_first(launch: Callable[..., str]) -> None:
    printed = launch(SCRIPT, processes=2)
    assert printed.count("2 of 8 tensors do not train as they stand; 6 learn, 0 frozen.") == 1
    assert "no parameter group holds it (on rank 1)" in printed
    assert sorted(line for line in printed.splitlines() if line.startswith("rank")) == [
        "rank 0 raised: ['late.weight', 'late.bias']",
        "rank 1 raised: ['late.weight', 'late.bias']",
    ]
