"""Faults that people really made, each a small script: named, with the line where there is one.

Every script in gallery/ has a docstring (the fault; Seen, Fix, Source), `EXPECTED` (pattern -> verdict) and `make`,
which returns model, loss_fn and optimizer. A comment `# <- pattern` marks the line that the verdict of these parameters
must point at. Some have `NOTES` (pattern -> words that must stand beside the verdict), `REMARK` (what else `explain`
must say, where the fault is about parameters that the model does not have) or `RAISES` (what a real step raises).
`python tests/probe/test_gallery.py` writes docs/gallery-of-faults.md anew.
"""

import contextlib
import importlib.util
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

import frostline as fl

GALLERY = Path(__file__).parent / "gallery"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "gallery-of-faults.md"
SCRIPTS = sorted(path.stem for path in GALLERY.glob("*.py"))
QUIET = {"learns", "learns in part", "frozen by plan", "frozen"}
LOUD = {
    "not finite",
    "cut",
    "unused",
    "not in optimizer",
    "moves without gradient",
    "learning rate 0",
    "zero gradient",
    "rounds away",
}

# torch warns once a process where a list of tensors is turned into numbers; many of these people had seen it
pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning")


def load(name):
    """The script `name`, freshly run, with torch's random numbers at the same start."""
    torch.manual_seed(0)
    spec = importlib.util.spec_from_file_location(f"gallery_{name}", GALLERY / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def notes(script, name):
    """The words that must stand beside the verdict."""
    return [note for pattern, note in getattr(script, "NOTES", {}).items() if fnmatch(name, pattern)]


STEPS = [name for name in SCRIPTS if not hasattr(load(name), "RAISES")]


def expected(script, names):
    """Name of each parameter -> its expected verdict and the number of the marked line, or None."""
    patterns = {}
    for name in names:
        (pattern,) = [pattern for pattern in script.EXPECTED if fnmatch(name, pattern)]
        patterns[name] = pattern
    assert set(patterns.values()) == set(script.EXPECTED), "a pattern names no parameter"
    lines = Path(script.__file__).read_text(encoding="utf-8").splitlines()
    marks = {}
    for number, line in enumerate(lines, start=1):
        for pattern in re.findall(r"<- (\S+)", line):
            assert pattern in script.EXPECTED, f"line {number} marks {pattern!r}, which EXPECTED does not have"
            marks[pattern] = number
    return {name: (script.EXPECTED[pattern], marks.get(pattern)) for name, pattern in patterns.items()}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_fault_is_named_with_its_line(name):
    script = load(name)
    model, loss_fn, optimizer = script.make()
    verdicts = fl.explain(model, loss_fn, optimizer).to_dict()
    wanted = expected(script, verdicts)
    assert {one: found["verdict"] for one, found in verdicts.items()} == {one: v for one, (v, _) in wanted.items()}
    for one, (verdict, line) in wanted.items():
        assert set(notes(script, one)) <= set(verdicts[one]["notes"])
        where = verdicts[one]["where"]
        if line is not None:
            assert where is not None, f"{one}: {verdict}, and no line"
            path, _, number = where.rpartition(":")
            assert (Path(path).name, int(number)) == (f"{name}.py", line)


@pytest.mark.parametrize("name", [name for name in SCRIPTS if hasattr(load(name), "REMARK")])
def test_what_is_outside_of_the_model_is_remarked(name):
    script = load(name)
    explanation = fl.explain(*script.make())
    assert [script.REMARK in remark for remark in explanation.remarks].count(True) == 1
    assert script.REMARK in str(explanation)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_alarms_are_the_loud_verdicts(name):
    script = load(name)
    explanation = fl.explain(*script.make())
    loud = {one for one, found in explanation.to_dict().items() if found["verdict"] in LOUD}
    assert set(explanation.alarms) == loud


@pytest.mark.parametrize("name", STEPS)
def test_a_real_step_says_the_same(name, agree):
    script = load(name)
    model, loss_fn, optimizer = script.make()
    agree(fl.explain(model, loss_fn, optimizer), fl.trial_step(model, loss_fn, optimizer))


@pytest.mark.parametrize("name", STEPS)
def test_a_real_step_moves_what_is_expected_to_move(name, moves_as_said):
    script = load(name)
    trial = fl.trial_step(*script.make())
    for one, (verdict, _) in expected(script, trial.to_dict()).items():
        assert moves_as_said(verdict, trial[one].moved, notes(script, one)), (one, verdict, trial[one].moved)
    assert trial.tensors


@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - set(STEPS)))
def test_a_step_that_raises_raises_in_a_trial_too(name):
    script = load(name)
    with pytest.raises(script.RAISES):
        fl.trial_step(*script.make())


@pytest.mark.parametrize("name", SCRIPTS)
def test_looking_leaves_no_trace(name, everything):
    script = load(name)
    model, loss_fn, optimizer = script.make()
    before = everything(model, optimizer)
    fl.explain(model, loss_fn, optimizer)
    assert everything(model, optimizer) == before
    with pytest.raises(script.RAISES) if hasattr(script, "RAISES") else contextlib.nullcontext():
        fl.trial_step(model, loss_fn, optimizer)
    assert everything(model, optimizer) == before


def test_the_gallery_is_large_and_has_every_verdict():
    verdicts = [verdict for name in SCRIPTS for verdict in set(load(name).EXPECTED.values())]
    faults = [
        name
        for name in SCRIPTS
        if set(load(name).EXPECTED.values()) - {"learns", "learns in part"} or hasattr(load(name), "REMARK")
    ]
    assert faults == SCRIPTS
    assert len(faults) >= 40
    assert set(verdicts) == QUIET | LOUD
    assert verdicts.count("cut") >= 20
    assert min(verdicts.count(loud) for loud in LOUD) >= 4


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_cut_has_a_marked_line(name):
    script = load(name)
    model, _, _ = script.make()
    names = [name for name, _ in model.named_parameters() if not name.endswith("_learned")]
    assert all(line is not None for verdict, line in expected(script, names).values() if verdict == "cut")


FIELDS = re.compile(
    r"(?P<fault>.+?)\n\nSeen: (?P<seen>.+?)\nFix: (?P<fix>.+?)\nSource: (?P<source>https://\S+)\n", re.S
)


def fields(name):
    found = FIELDS.fullmatch(load(name).__doc__)
    assert found, f"{name}: its docstring needs the fault, Seen, Fix and Source"
    return {key: " ".join(text.split()) for key, text in found.groupdict().items()}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_says_what_people_saw_and_where(name):
    assert all(fields(name).values())


HEAD = """# A gallery of faults

Faults that people really made, each boiled down to a script of some twenty lines in `tests/probe/gallery`. For each of
them `fl.explain` names the verdict below, with the line for what is cut, and `fl.trial_step` takes a real step and sees
the same tensors move, or stand. This page is written from the scripts (`python tests/probe/test_gallery.py`).

```python
import torch
import frostline as fl
from torch import nn

model = nn.ModuleDict({"encoder": nn.Linear(4, 4), "head": nn.Linear(4, 1)})
x, y = torch.randn(8, 4), torch.randn(8, 1)


def loss_fn():
    features = model["encoder"](x).detach()
    return nn.functional.mse_loss(model["head"](features), y)


optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
explanation, trial = fl.explain(model, loss_fn, optimizer), fl.trial_step(model, loss_fn, optimizer)
for name, found in explanation.to_dict().items():
    print(f"{name:15} {found['verdict']:7} moved {trial[name].moved} of {trial[name].of}")
```
```text
encoder.weight  cut     moved 0 of 16
encoder.bias    cut     moved 0 of 4
head.weight     learns  moved 4 of 4
head.bias       learns  moved 1 of 1
```
"""

OUTSIDE = "not in the model"  # said in a remark: such a parameter has no name
ORDER = [
    "cut",
    "unused",
    "not in optimizer",
    "moves without gradient",
    "learning rate 0",
    "zero gradient",
    "not finite",
    "rounds away",
    "frozen",
    "frozen by plan",
    OUTSIDE,
]


def page():
    """docs/gallery-of-faults.md, from the scripts."""
    groups = {verdict: [] for verdict in ORDER}
    for name in SCRIPTS:
        verdicts = set(load(name).EXPECTED.values())
        groups[min(verdicts & set(ORDER), key=ORDER.index, default=OUTSIDE)].append(name)
    lines = [HEAD]
    for verdict, names in groups.items():
        lines += [f"\n## {verdict[0].upper()}{verdict[1:]}\n\n", "| fault | what people saw | what to do |\n"]
        lines.append("| --- | --- | --- |\n")
        for name in names:
            said = {key: text.replace("|", "\\|") for key, text in fields(name).items()}
            lines.append(f"| [{said['fault']}]({said['source']}) | {said['seen']} | {said['fix']} |\n")
    return "".join(lines)


def test_the_page_is_written_from_the_scripts():
    assert PAGE.read_text(encoding="utf-8") == page()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
