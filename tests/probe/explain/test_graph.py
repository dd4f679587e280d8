"""The graph of a pass has its parameters, its calls, and the edges between them, and TensorBoard reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.record import describe_run
from frostline.report import write_tensorboard


def _explained() -> fl.probe.Explanation:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1), nn.Linear(1, 1))
    return fl.explain(model, lambda: model[:3](torch.ones(4, 2)).mean(), path_to="0.weight")


def test_it_has_each_call_with_what_it_was_computed_from_and_nothing_unused() -> None:
    graph = {node["name"]: (node["call"], node["inputs"]) for node in _explained().graph}
    assert graph == {
        **{f"{layer}/{name}": ("parameter", []) for layer in (0, 2) for name in ("weight", "bias")},
        "0_linear": ("linear", ["0/bias", "0/weight"]),
        "1_tanh": ("tanh", ["0_linear"]),
        "2_linear": ("linear", ["1_tanh", "2/bias", "2/weight"]),
        "3_mean": ("mean", ["2_linear"]),
    }


def test_tensorboard_reads_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    explanation = _explained()
    describe_run(tmp_path / "run", explanation=explanation)
    write_tensorboard(tmp_path / "run", tmp_path / "logs")
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    found = {node.name: (node.op, list(node.input)) for node in events.Graph().node}
    assert found == {node["name"]: (node["call"], node["inputs"]) for node in explanation.graph}
