"""Sizes and rates out of range are refused when a config is made; those at the edge of a range train."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from frostline import tagger
from frostline.tagger import TaggerConfig


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"hidden": 0}, "hidden: 0 is out of range. Pass 1 or more."),
        ({"batch_size": 0}, "batch_size: 0 is out of range. Pass 1 or more."),
        ({"shape_width": -1}, "shape_width: -1 is out of range. Pass 0 or more."),
        ({"char_filters": -1}, "char_filters: -1 is out of range. Pass 0 or more."),
        ({"learning_rate": float("nan")}, "learning_rate: nan is out of range. Pass 0 or more."),
        ({"weight_decay": -0.1}, "weight_decay: -0.1 is out of range. Pass 0 or more."),
        ({"max_grad_norm": -1.0}, "max_grad_norm: -1.0 is out of range. Pass 0 or more."),
        ({"unk_dropout": -1}, "unk_dropout: -1 is out of range. Pass 0 or more."),
        ({"dropout": 1.1}, "dropout: 1.1 is out of range. Pass 0 to 1."),
        ({"dropout_state": -0.1}, "dropout_state: -0.1 is out of range. Pass 0 to 1."),
        ({"ema_decay": 2}, "ema_decay: 2 is out of range. Pass 0 to 1."),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        TaggerConfig(**given)


def test_values_at_the_edge_of_their_range_train(toy: Any) -> None:
    edges = [
        {"hidden": 1, "batch_size": 1, "shape_width": 0},
        {"dropout": 1.0, "dropout_state": 1.0, "ema_decay": 1.0},
        {"dropout": 0.0, "weight_decay": 0.0, "unk_dropout": 0.0, "ema_decay": 0.0},
    ]
    for edge in edges:
        config = dataclasses.replace(toy.config, **edge)
        run = tagger.train(toy.train[:20], toy.dev, toy.vectors, epochs=1, config=config)
        assert run.audit.learned_rows_moved > 0
