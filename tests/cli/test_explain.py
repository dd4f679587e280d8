"""`frostline explain`: what it prints, what it compares, how it ends."""

import json
import sys

import pytest

from frostline.cli import main

TRAIN = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    model = nn.ModuleDict({"encoder": nn.Linear(4, 4), "head": nn.Linear(4, 1)})
    x = torch.ones(8, 4)
    return model, lambda: model["head"](model["encoder"](x)).mean(), torch.optim.SGD(model.parameters(), lr=0.1)


def cut():
    model, _, optimizer = make()
    x = torch.ones(8, 4)

    def loss_fn():
        return model["head"](model["encoder"](x).detach()).mean()

    return model, loss_fn, optimizer


def partial():
    import frostline as fl

    model, loss_fn, _ = make()
    plan = fl.train_only(model, {"encoder.weight": fl.rows([0, 1]), "head.*": fl.everything})
    return model, loss_fn, torch.optim.SGD(plan.parameters(), lr=0.1)


def pair():
    return make()[:2]


def wrong():
    return make()[0]


def forgotten():
    model, loss_fn, optimizer = make()
    return model, loss_fn, optimizer.step


def broken():
    return 1 / 0


constant = 3
"""


@pytest.fixture(autouse=True)
def in_a_folder_with_a_training_script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("train", "package", "package.train"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "train.py").write_text(TRAIN)
    yield
    for name in ("train", "package", "package.train"):
        sys.modules.pop(name, None)


def run(capfd, *arguments):
    code = main(["explain", *arguments])
    out, err = capfd.readouterr()
    return code, out, err


@pytest.mark.parametrize("source", ["train", "train.py", "package.train", "package/train.py"])
def test_a_model_without_fault_ends_with_0(capfd, source):
    code, out, err = run(capfd, f"{source}:make")
    assert (code, err) == (0, "")
    assert out.startswith("No alarm; 4 learn, 0 frozen.\n")


def test_an_alarm_ends_with_1_and_names_the_line(capfd):
    code, out, err = run(capfd, "train:cut")
    assert (code, err) == (1, "")
    line = next(index for index, text in enumerate(TRAIN.splitlines(), 1) if ".detach()" in text)
    assert f"train.py:{line}\n" in out
    assert "! cut" in out


def test_make_may_leave_the_optimizer_out(capfd):
    assert run(capfd, "train:pair")[0] == 0


def test_what_json_prints_is_what_expect_takes(capfd, tmp_path):
    code, out, _ = run(capfd, "train:cut", "--json")
    assert code == 1
    assert json.loads(out)["encoder.weight"]["verdict"] == "cut"
    (tmp_path / "plan.json").write_text(out)
    assert run(capfd, "train:cut", "--expect", "plan.json")[::2] == (0, "")
    code, _, err = run(capfd, "train:make", "--expect", "plan.json")
    assert code == 1
    assert err.splitlines() == ["encoder.weight: learns, expected: cut", "encoder.bias: learns, expected: cut"]


def test_names_beat_patterns_and_the_last_pattern_wins(capfd, tmp_path):
    (tmp_path / "plan.json").write_text('{"encoder.bias": "learns", "*": "cut", "enc*": "cut", "head*": "learns"}')
    assert run(capfd, "train:make", "--expect", "plan.json")[2].splitlines() == [
        "encoder.weight: learns, expected: cut"
    ]


def test_what_is_missing_on_either_side_is_a_difference(capfd, tmp_path):
    (tmp_path / "plan.json").write_text('{"encoder.*": "learns", "tail.*": "frozen"}')
    code, _, err = run(capfd, "train:make", "--expect", "plan.json")
    assert code == 1
    assert err.splitlines() == [
        "head.weight: learns, but nothing is expected of it",
        "head.bias: learns, but nothing is expected of it",
        "tail.*: expected: frozen, but no parameter has this name",
    ]


def test_more_rows_than_expected_are_a_difference(capfd, tmp_path):
    code, out, _ = run(capfd, "train:partial", "--json")
    assert code == 0
    (tmp_path / "plan.json").write_text(out)
    assert run(capfd, "train:partial", "--expect", "plan.json")[0] == 0
    train = tmp_path / "train.py"
    train.write_text(TRAIN.replace("fl.rows([0, 1])", "fl.rows([0, 1, 2])"))
    del sys.modules["train"]
    code, _, err = run(capfd, "train.py:partial", "--expect", "plan.json")
    assert (code, err) == (1, "encoder.weight: 3 learn, expected: 2\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train"], "MODULE:MAKE: expected package.module:make or file.py:make, got 'train'."),
        (["nowhere:make"], "nowhere: no such module, here or installed."),
        (["nowhere.train:make"], "nowhere.train: no such module, here or installed."),
        (["nowhere.py:make"], "nowhere.py: no such file."),
        (["train:missing"], "train: has no function 'missing'."),
        (["train:constant"], "train: has no function 'constant'."),
        (["train:wrong"], "train:wrong: it must return model, loss_fn and optimizer; it returned ModuleDict."),
        (["train:forgotten"], "train:forgotten: optimizer: method has no `param_groups` and `step`."),
        (["train:make", "--expect", "no.json"], "no.json: No such file or directory. Check the path."),
        (["train:make", "--expect", "bad.json"], "bad.json:2: expected JSON: Expecting value."),
        (["train:make", "--expect", "latin.json"], "latin.json:1: expected JSON: not UTF-8."),
        (["train:make", "--expect", "list.json"], "list.json:1: it must map names to verdicts"),
        (
            ["train:make", "--expect", "word.json"],
            "word.json:2: head.*: expected a verdict (frozen by plan, frozen, ",
        ),
    ],
)
def test_what_cannot_run_ends_with_2_and_one_line(capfd, tmp_path, arguments, says):
    (tmp_path / "bad.json").write_text('{"*":\n}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "latin.json").write_bytes(b'{"caf\xe9": "learns"}')
    (tmp_path / "word.json").write_text('{"encoder.*": "learns",\n "head.*": "trains"}')
    code, out, err = run(capfd, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"frostline: {says}")
    assert err.count("\n") == 1


def test_what_the_users_code_raises_ends_with_2_and_keeps_its_traceback(capfd, tmp_path):
    code, _, err = run(capfd, "train:broken")
    assert code == 2
    assert err.endswith("ZeroDivisionError: division by zero\n")
    (tmp_path / "typo.py").write_text("def make(:\n")
    code, _, err = run(capfd, "typo.py:make")
    assert code == 2
    assert "typo.py" in err
    assert "SyntaxError" in err


def test_what_the_users_code_prints_does_not_get_into_the_json(capfd, tmp_path):
    (tmp_path / "loud.py").write_text(
        "print('loading')\n" + TRAIN.replace("model = nn", "print('making')\n    model = nn")
    )
    code, out, err = run(capfd, "loud.py:make", "--json")
    assert code == 0
    assert json.loads(out)["head.bias"]["verdict"] == "learns"
    assert err == "loading\nmaking\n"


@pytest.mark.parametrize("code", ["0", ""])
def test_a_script_that_exits_cannot_be_explained(capfd, tmp_path, code):
    (tmp_path / "quits.py").write_text(f"import sys\nsys.exit({code})\n")
    code, out, err = run(capfd, "quits.py:make")
    assert (code, out) == (2, "")
    assert err.startswith("frostline: quits.py:make: it called sys.exit(")


def test_a_script_finds_its_neighbours_and_takes_no_modules_name(capfd, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "neighbour.py").write_text(TRAIN)
    (tmp_path / "folder" / "random.py").write_text("from neighbour import make\n")
    before, path = sys.modules["random"], [*sys.path]
    assert run(capfd, "folder/random.py:make")[0] == 0
    assert sys.modules["random"] is before
    assert sys.path == path
    del sys.modules["neighbour"]


def test_the_help_names_both_forms_and_the_exit_codes(capfd):
    code, out, _ = run(capfd, "--help")
    assert code == 0
    assert "train.py:make --expect plan.json" in out
    assert "Exit codes: 0 " in out
