"""Partial tensors on a made-up device that refuses to mix with the CPU: the same entries move, to the same values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NAMES = ["rows", "rows chosen there", "entries"]
MOVED = {"rows": {3, 8}, "rows chosen there": {3, 8}}


@pytest.fixture(scope="module")
def found(made_up_device: Path, launch: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("core")
    launch(Path(__file__).parent / "core_elsewhere.py", made_up_device, folder)
    return json.loads((folder / "core.json").read_text(encoding="utf-8"))


def test_the_device_refuses_a_partial_tensor_with_one_of_the_cpu(found: Any) -> None:
    assert not found["mixes"]


@pytest.mark.parametrize("name", NAMES)
def test_on_another_device_the_same_entries_move_to_the_same_values(name: str, found: Any) -> None:
    here, there = found[name]["cpu"], found[name]["elsewhere"]
    assert (here["devices"], there["devices"]) == (["cpu"], ["elsewhere"])
    assert there["moved"] == here["moved"]
    for tensor, values in here["values"].items():
        for row, other in zip(values, there["values"][tensor], strict=True):
            assert other == pytest.approx(row, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", MOVED)
def test_on_another_device_rows_that_learn_move_and_no_other(name: str, found: Any) -> None:
    there = found[name]["elsewhere"]
    assert {row for row, _ in there["moved"]["0.weight"]} == MOVED[name]
    assert there["alarms"] == 0
    assert there["digest kept"]


def test_on_another_device_entries_that_learn_move_and_no_other(found: Any) -> None:
    there = found["entries"]["elsewhere"]
    assert there["moved"] == {"0.weight": [], "1.weight": [[0, 0], [1, 1], [2, 2]], "1.bias": []}
