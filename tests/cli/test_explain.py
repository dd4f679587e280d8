"""`frostline explain`: what it prints, what it compares, how it ends."""

import json
import subprocess
import sys

import pytest

from frostline.cli import main
from frostline.probe.trace.patches import is_traced

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


SCRIPT = """
import subprocess
import sys
import torch
from torch import nn

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 1)

    def forward(self, x):
        h = self.body(x)
        return self.head(h.detach() if "cut" in sys.argv else h)


net = Net()
with torch.no_grad():
    net.eval()(torch.ones(1, 4))  # an evaluation before training
optimizer = torch.optim.AdamW(net.train().parameters(), lr=0.1)
patched = []
for step in range(3):
    loss = net(torch.randn(5, 4)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    patched.append(torch.autograd.backward.__module__)
    print("step", step, loss.item(), torch.rand(1).item())
print(sys.argv[1:], __name__, patched[-1], len(torch.nn.modules.module._global_forward_pre_hooks))
if "raise" in sys.argv:
    net(torch.randn(5, 3))
sys.exit(3 if "three" in sys.argv else None)
"""
ADVERSARIES = """
import torch
from torch import nn

torch.manual_seed(0)
maker, judge, idle = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 1)), nn.Linear(2, 2)
ours, theirs = (torch.optim.SGD(each.parameters(), lr=0.1) for each in (maker, judge))
for _ in range(2):
    x = torch.randn(4, 2)
    theirs.zero_grad()
    judge(maker(x).detach()).mean().backward()
    theirs.step()
    ours.zero_grad()
    (-judge(maker(x)).mean()).backward()
    ours.step()
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def plain_run(script, *arguments):
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize(
    ("arguments", "code"), [((), 0), (("--lr", "cut", "--json", "x"), 0), (("three",), 3), (("raise",), 1)]
)
def test_a_script_runs_as_it_would_without_us(capfd, script, arguments, code):
    plain = plain_run(script, *arguments)
    found, out, err = run(capfd, str(script), *arguments)
    assert found == code == plain.returncode
    assert out == plain.stdout
    assert "step 2" in out
    verdict = (
        "! cut: body.weight, body.bias\n  why    detach: " if "cut" in arguments else "No alarm; 4 learn, 0 frozen."
    )
    assert verdict in err
    assert err.count("net: Net\n") == 1
    if code == 1:
        assert err.rstrip().endswith(plain.stderr.rstrip().splitlines()[-1])
        assert "frostline" not in err.partition("Traceback")[2]


def test_a_module_is_run_as_a_script(capfd, script, monkeypatch):
    monkeypatch.chdir(script.parent)
    monkeypatch.delitem(sys.modules, "script", raising=False)
    code, out, err = run(capfd, "-m", "script", "cut", "--step", "7")
    assert code == 0
    assert "['cut', '--step', '7'] __main__" in out
    assert "2 of 4 tensors do not train" in err


@pytest.mark.parametrize(
    ("flags", "code", "steps"), [(["--fail"], 1, 3), (["--stop"], 0, 1), (["--fail", "--stop"], 1, 1)]
)
def test_a_script_can_be_stopped_and_fail_a_build(capfd, tmp_path, script, flags, code, steps):
    found, out, _ = run(capfd, *flags, "--json", str(tmp_path / "found.json"), str(script), "cut")
    assert (found, out.count("step ")) == (code, steps)
    (table,) = json.loads((tmp_path / "found.json").read_text()).values()
    assert {name: finding["verdict"] for name, finding in table.items()} == {
        "body.weight": "cut",
        "body.bias": "cut",
        "head.weight": "learns",
        "head.bias": "learns",
    }
    assert table["body.weight"]["where"].endswith(f"script.py:{1 + SCRIPT.splitlines().index(CUT_LINE)}")


@pytest.mark.parametrize("text", ["print(1)", "import torch\nprint(1)", "import torch\nprint(torch.nn.Linear(2, 1))"])
def test_a_script_of_which_nothing_is_explained_fails_a_build_and_nothing_else(capfd, tmp_path, text):
    script = tmp_path / "idle.py"
    script.write_text(text)
    for flags, code in (((), 0), (("--fail",), 1)):
        found, out, err = run(capfd, *flags, str(script))
        assert (found, len(out.splitlines())) == (code, 1)
        assert "no module with parameters that learn has run" in err or "Nothing is explained" in err


CUT_LINE = '        return self.head(h.detach() if "cut" in sys.argv else h)'


def test_several_models_and_optimizers_get_a_table_each(capfd, tmp_path):
    (tmp_path / "gan.py").write_text(ADVERSARIES)
    code, _, err = run(capfd, "--json", str(tmp_path / "found.json"), str(tmp_path / "gan.py"))
    assert code == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert sorted(found) == ["judge: Sequential", "maker: Linear"]
    assert {finding["verdict"] for table in found.values() for finding in table.values()} == {"learns"}
    assert err.count("No alarm") == 2


def test_a_step_that_never_comes_is_said_at_the_end(capfd, tmp_path, script):
    (tmp_path / "never.py").write_text(
        SCRIPT.replace("    optimizer.step()\n", "").replace("optimizer.zero_grad()", "")
    )
    code, _, err = run(capfd, str(tmp_path / "never.py"))
    assert code == 0
    assert "! not stepped" in err
    assert "no step came after 3 backward passes" in err


def test_weights_overwritten_after_the_step_are_seen_before_the_next_forward(capfd, tmp_path):
    undone = SCRIPT.replace(
        "    loss.backward()\n", "    old = [p.detach().clone() for p in net.parameters()]\n    loss.backward()\n"
    )
    undone = undone.replace(
        "    optimizer.zero_grad()\n", "    [p.data.copy_(o) for p, o in zip(net.parameters(), old)]\n"
    )
    (tmp_path / "undone.py").write_text(undone)
    _, _, err = run(capfd, str(tmp_path / "undone.py"))
    assert "! overwritten" in err
    assert (
        f"undone.py:{1 + undone.splitlines().index('    [p.data.copy_(o) for p, o in zip(net.parameters(), old)]')}"
        in err
    )


def test_a_script_without_a_model_says_so(capfd, tmp_path):
    (tmp_path / "none.py").write_text("print('done')")
    assert run(capfd, str(tmp_path / "none.py")) == (
        0,
        "done\n",
        f"\nfrostline: {tmp_path / 'none.py'}: in this process no module with parameters that learn has run, "
        "and no optimizer stepped.\n\n",
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing.py"], "missing.py: no such file."),
        (["-m", "no_such_module_here"], "-m no_such_module_here: no such module, here or installed."),
        (["--step", "0", "script.py"], "--step: expected a number from 1, got 0."),
        (["--expect", "plan.json", "script.py"], "--expect: only for MODULE:MAKE. Leave it out."),
        ([], "expected a script, or MODULE:MAKE"),
    ],
)
def test_what_cannot_be_run_as_a_script_ends_with_2_and_one_line(capfd, script, monkeypatch, arguments, says):
    monkeypatch.chdir(script.parent)
    (script.parent / "plan.json").write_text("{}")
    code, out, err = run(capfd, *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert says in err


def test_after_a_script_that_cannot_be_run_nothing_waits_for_a_module(capfd, monkeypatch):
    import torch

    import frostline as fl

    assert main(["explain", "missing.py"]) == 2
    capfd.readouterr()
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    assert not is_traced()
    with fl.watching(model, optimizer) as seen:  # refused while another one runs
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert seen.explanation.to_dict()["weight"]["verdict"] == "learns"
