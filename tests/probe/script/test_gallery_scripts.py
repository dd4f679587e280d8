"""The faults of the gallery as plain scripts: each, unchanged, gets the verdict and the line that `explain` gives."""

import gc
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import torch

import frostline as fl
from frostline.cli import main

GALLERY = Path(__file__).parents[1] / "gallery"
STEP = """
model, loss_fn, optimizer = make()
loss_fn().backward()
for each in optimizer if isinstance(optimizer, (list, tuple)) else [optimizer]:
    each.step()
"""
# Those that train inside `make` first: the step after that is to be explained.
STEPS = {"momentum_of_a_frozen_layer": 4, "schedule_ended": 6, "unused_branch_under_decay": 2}
SAMPLE = sorted(path.stem for path in GALLERY.glob("*.py"))[:: 1 if os.environ.get("FROSTLINE_SOAK") else 8]

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning")


def made(name):
    torch.manual_seed(0)
    spec = importlib.util.spec_from_file_location(f"gallery_{name}", GALLERY / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.make()


@pytest.fixture(autouse=True)
def _same_process(monkeypatch):
    """A script's process is its own; here it is that of the tests."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


@pytest.mark.parametrize("name", SAMPLE)
def test_a_fault_as_a_script_has_the_verdict_and_line_of_explain(name, tmp_path, capfd):
    explained = fl.explain(*made(name)).to_dict()
    script, table = tmp_path / f"{name}.py", tmp_path / "found.json"
    script.write_text((GALLERY / f"{name}.py").read_text() + STEP)
    gc.collect()  # models of other tests, which this process still holds
    torch.manual_seed(0)
    main(["explain", "--json", str(table), "--step", str(STEPS.get(name, 1)), str(script)])
    found = {}
    for each in json.loads(table.read_text()).values():
        found |= each
    assert found.keys() >= explained.keys()
    for parameter, finding in explained.items():
        assert found[parameter]["verdict"] == finding["verdict"]
        assert _line(found[parameter]["where"]) == _line(finding["where"])
    assert capfd.readouterr().err


def _line(where):
    return where and (Path(where.rpartition(":")[0]).name, where.rpartition(":")[2])
