"""The plugin of pytest, in a project that has nothing else of frostline's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROJECT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())

BEFORE = """
import sys


def test_nothing_is_loaded_before_it_is_used():
    assert "torch" not in sys.modules
    assert [name for name in sys.modules if name.startswith("frostline.")] == [
        "frostline.integrations",
        "frostline.integrations.pytest",
    ]
"""

MODEL = """
import pytest


@pytest.fixture
def make():
    import torch
    from torch import nn

    def make(frozen=False):
        torch.manual_seed(0)
        model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "head": nn.Linear(4, 2)})
        model["head"].bias.requires_grad_(not frozen)
        loss_fn = lambda: model["head"](model["embed"](torch.arange(9)).detach()).square().mean()  # the cut
        return model, loss_fn, torch.optim.Adam(model.parameters())

    return make


def test_cut(assert_learns, make):
    assert_learns(*make())


def test_frozen(assert_learns, make):
    assert_learns(*make(frozen=True), except_=["embed.*"])


def test_no_such_name(assert_learns, make):
    assert_learns(*make(), except_=["embed.*", "embedding.*"])


def test_a_step_that_raises(assert_learns, make):
    model, loss_fn, optimizer = make()
    optimizer.step = lambda closure=None: 1 / 0
    assert_learns(model, loss_fn, optimizer, except_=["*"])


def test_excepted(assert_learns, make):
    assert_learns(*make(), except_=["embed.*"])
    assert_learns(*make(frozen=True), except_=iter(["embed.weight", "*.bias"]))
    assert_learns(*make()[:2], except_="embed.*")
"""


def test_a_test_fails_with_the_explanation_when_a_tensor_does_not_learn(tmp_path: Path) -> None:
    (tmp_path / "test_a_before.py").write_text(BEFORE)
    (tmp_path / "test_model.py").write_text(MODEL)
    command = [sys.executable, "-m", "pytest", "-p", "frostline.integrations.pytest", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "200"}
    environment.pop("CI", None)
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "4 failed, 2 passed" in run.stdout, run.stdout + run.stderr
    assert "AssertionError: 1 tensor does not learn: embed.weight" in run.stdout
    assert "detach: loss_fn = lambda: " in run.stdout
    assert "test_model.py:14" in run.stdout
    assert "AssertionError: 1 tensor does not learn: head.bias" in run.stdout
    assert "except_: 'embedding.*' matches no tensor of the model. Its tensors: embed.weight, head" in run.stdout
    assert "AssertionError: nothing is known to learn" in run.stdout
    assert "The step raised ZeroDivisionError: division by zero" in run.stdout
    assert "explain(model, loss_fn, optimizer)" not in run.stdout  # the user's lines alone


def test_pytest_finds_it_where_frostline_is_installed() -> None:
    entry = '[project.entry-points.pytest11]\nfrostline = "frostline.integrations.pytest"\n'
    assert entry in (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
