"""Sizes and rates that no training can have are refused when they are named; those at the edge of a range are not."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from frostline import tagger
from frostline.tagger import Options


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"hidden": 0}, "hidden: 0 is out of range. Pass 1 or more."),
        ({"batch": 0}, "batch: 0 is out of range. Pass 1 or more."),
        ({"shape_width": -1}, "shape_width: -1 is out of range. Pass 0 or more."),
        ({"characters": -1}, "characters: -1 is out of range. Pass 0 or more."),
        ({"learning_rate": float("nan")}, "learning_rate: nan is out of range. Pass 0 or more."),
        ({"decay": -0.1}, "decay: -0.1 is out of range. Pass 0 or more."),
        ({"clip": -1.0}, "clip: -1.0 is out of range. Pass 0 or more."),
        ({"hide": -1}, "hide: -1 is out of range. Pass 0 or more."),
        ({"dropout": 1.1}, "dropout: 1.1 is out of range. Pass 0 to 1."),
        ({"recurrent_dropout": -0.1}, "recurrent_dropout: -0.1 is out of range. Pass 0 to 1."),
        ({"average": 2}, "average: 2 is out of range. Pass 0 to 1."),
    ],
)
def test_what_is_out_of_range_is_named_with_its_range(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        Options(**given)


def test_what_is_at_the_edge_of_its_range_can_be_trained_with(toy: Any) -> None:
    edges = [
        {"hidden": 1, "batch": 1, "shape_width": 0},
        {"dropout": 1.0, "recurrent_dropout": 1.0, "average": 1.0},
        {"dropout": 0.0, "decay": 0.0, "hide": 0.0, "average": 0.0},
    ]
    for edge in edges:
        options = dataclasses.replace(toy.options, **edge)
        run = tagger.train(toy.train[:20], toy.dev, toy.vectors, epochs=1, options=options)
        assert run.audit.learned_rows_moved > 0
