"""Faults that people really made, each a small script: `explain` names them, with the line if there is one.

Every script in gallery/ has a docstring (the fault; Seen, Fix, Source), `EXPECTED` (pattern -> verdict) and `make`,
which returns model, loss_fn and optimizer. A comment `# <- pattern` marks the line that the verdict of these parameters
must point at. Some have `NOTES` (pattern -> a note that must stand beside the verdict), `REMARK` (what else `explain`
must say, if the fault is about parameters that the model does not have) or `RAISES` (what a real step raises).
`python tests/probe/test_gallery.py` writes docs/gallery-of-faults.md.
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
PROJECT = next(folder for folder in GALLERY.resolve().parents if (folder / "pyproject.toml").is_file())
PAGE = PROJECT / "docs" / "gallery-of-faults.md"
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
    """Return the script `name`, freshly run from the same seed."""
    torch.manual_seed(0)
    spec = importlib.util.spec_from_file_location(f"gallery_{name}", GALLERY / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def notes(script, name):
    """Return the notes that must stand beside the verdict."""
    return [note for pattern, note in getattr(script, "NOTES", {}).items() if fnmatch(name, pattern)]


STEPS = [name for name in SCRIPTS if not hasattr(load(name), "RAISES")]


def expected(script, names):
    """Return name of each parameter -> its expected verdict and the marked line, or None."""
    patterns = {}
    for name in names:
        (pattern,) = [pattern for pattern in script.EXPECTED if fnmatch(name, pattern)]
        patterns[name] = pattern
    assert set(patterns.values()) == set(script.EXPECTED), "a pattern names no parameter"
    lines = Path(script.__file__).read_text(encoding="utf-8").splitlines()
    marks = {}
    for line, text in enumerate(lines, start=1):
        for pattern in re.findall(r"<- (\S+)", text):
            assert pattern in script.EXPECTED, f"line {line} marks {pattern!r}, which EXPECTED does not have"
            marks[pattern] = line
    return {name: (script.EXPECTED[pattern], marks.get(pattern)) for name, pattern in patterns.items()}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_fault_is_named_with_its_line(name):
    script = load(name)
    model, loss_fn, optimizer = script.make()
    findings = fl.explain(model, loss_fn, optimizer).to_dict()
    wanted = expected(script, findings)
    assert {parameter: finding["verdict"] for parameter, finding in findings.items()} == {
        parameter: verdict for parameter, (verdict, _) in wanted.items()
    }
    for parameter, (verdict, line) in wanted.items():
        assert set(notes(script, parameter)) <= set(findings[parameter]["notes"])
        where = findings[parameter]["where"]
        if line is not None:
            assert where is not None, f"{parameter}: {verdict}, and no line"
            path, _, found_line = where.rpartition(":")
            assert (Path(path).name, int(found_line)) == (f"{name}.py", line)


@pytest.mark.parametrize("name", [name for name in SCRIPTS if hasattr(load(name), "REMARK")])
def test_what_is_outside_of_the_model_is_remarked(name):
    script = load(name)
    explanation = fl.explain(*script.make())
    assert [script.REMARK in remark for remark in (*explanation.remarks, explanation.raised)].count(True) == 1
    assert script.REMARK in str(explanation)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_alarms_are_the_loud_verdicts(name):
    script = load(name)
    explanation = fl.explain(*script.make())
    loud = {parameter for parameter, finding in explanation.to_dict().items() if finding["verdict"] in LOUD}
    assert set(explanation.alarms) == loud


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_watched_step_gives_the_verdict_and_line_of_explain(name):
    explained = fl.explain(*load(name).make()).to_dict()
    model, loss_fn, optimizer = load(name).make()
    with contextlib.suppress(getattr(load(name), "RAISES", ())), fl.watching(model, optimizer) as seen:
        loss_fn().backward()
        for each in optimizer if isinstance(optimizer, list | tuple) else [optimizer]:
            each.step()
    found = seen.explanation.to_dict()
    assert {key: (value["verdict"], value["where"]) for key, value in found.items()} == {
        key: (value["verdict"], value["where"]) for key, value in explained.items()
    }


@pytest.mark.parametrize("name", STEPS)
def test_a_real_step_says_the_same(name, agree):
    script = load(name)
    model, loss_fn, optimizer = script.make()
    agree(fl.explain(model, loss_fn, optimizer), fl.trial_step(model, loss_fn, optimizer))


@pytest.mark.parametrize("name", STEPS)
def test_a_real_step_moves_what_is_expected_to_move(name, moves_as_said):
    script = load(name)
    trial = fl.trial_step(*script.make())
    for parameter, (verdict, _) in expected(script, trial.to_dict()).items():
        moved = trial[parameter].entries_moved
        assert moves_as_said(verdict, moved, notes(script, parameter)), (parameter, verdict, moved)
    assert trial.tensors


@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - set(STEPS)))
def test_a_step_that_raises_raises_in_a_trial_too(name):
    script = load(name)
    with pytest.raises(script.RAISES):
        fl.trial_step(*script.make())


@pytest.mark.parametrize("name", SCRIPTS)
def test_looking_changes_nothing(name, everything):
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

Faults that people really made, each reduced to a script of some twenty lines in `tests/probe/gallery`. For each of them
`fl.explain` gives the verdict below, with the line of each cut, and `fl.trial_step` takes a real step in which the same
tensors move. This page is written from the scripts (`python tests/probe/test_gallery.py`).

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
    print(f"{name:15} {found['verdict']:7} moved {trial[name].entries_moved} of {trial[name].entries}")
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
    """Return docs/gallery-of-faults.md, written from the scripts."""
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
