"""Scripts of every shape: models made late or lazily, several optimizers, one that is compiled, and none at all."""

import gc
import json
import sys

import pytest
import torch
import torch.distributed as dist

from frostline.cli import main
from frostline.probe.script.ranks import _difference

HEAD = """
import torch, torch.nn.functional as F
from torch import nn
torch.manual_seed(0)
x = torch.randn(8, 4)
"""
LATE = """
trunk = nn.Linear(4, 4)
trunk(x).sum()  # before anything else is there
head = nn.Linear(4, 1)
optimizer = torch.optim.SGD([*trunk.parameters(), *head.parameters()], lr=0.1)
for _ in range(3):
    head(trunk(x).detach()).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""
GROWN = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.head = nn.Linear(4, 4), None
    def forward(self, x):
        h = self.trunk(x)
        if self.head is None:
            self.head = nn.Linear(4, 1)
            self.forgotten = nn.Linear(4, 1)
        return self.head(h) + self.forgotten(h)
model, optimizer = Model(), None
for _ in range(3):
    loss = model(x).square().mean()
    optimizer = optimizer or torch.optim.SGD([*model.trunk.parameters(), *model.head.parameters()], lr=0.1)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""
LAZY = """
model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.LazyLinear(1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(2):
    model[2](model[1](model[0](x)).detach()).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""
GAN = """
maker, judge = nn.Linear(4, 4), nn.Linear(4, 1)
of_judge, of_maker = (torch.optim.Adam(model.parameters()) for model in (judge, maker))
for number in range(9):
    maker.requires_grad_(False)
    (F.softplus(-judge(x)) + F.softplus(judge(maker(x).detach()))).mean().backward()
    of_judge.step()
    of_judge.zero_grad()
    maker.requires_grad_(True)
    if number % 3 == 2:
        F.softplus(-judge(maker(x))).mean().backward()
        of_maker.step()
        of_maker.zero_grad()
        of_judge.zero_grad()
"""
TEACHER = """
import copy
class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.value = nn.Linear(4, 1)
        self.target = copy.deepcopy(self.value)
agent, outside = Agent(), nn.Linear(4, 1)
temperature = torch.zeros(1, requires_grad=True)
optimizer = torch.optim.SGD([*agent.value.parameters(), temperature], lr=0.1)
for _ in range(3):
    with torch.no_grad():
        goal = agent.target(x) + outside(x)
    ((agent.value(x) - goal).square().mean() * temperature.exp()).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    for old, new in zip(agent.target.parameters(), agent.value.parameters()):
        old.data.mul_(0.9).add_(new.data, alpha=0.1)
"""
BY_HAND = """
model = nn.Linear(4, 1)
for number in range(3):
    for p, g in zip(model.parameters(), torch.autograd.grad(model(x).square().mean(), list(model.parameters()))):
        p.data -= 0.1 * g
"""
GIVEN_GRADIENTS = """
model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for number in range(3):
    for p, g in zip(model.parameters(), torch.autograd.grad(model(x).square().mean(), list(model.parameters()))):
        p.grad = g
    optimizer.step()
"""
CLOSURE = """
model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
optimizer = torch.optim.LBFGS(model.parameters())
def closure():
    optimizer.zero_grad()
    loss = model[1](model[0](x).detach()).square().mean()
    loss.backward()
    return loss
for number in range(2):
    optimizer.step(closure)
"""
COMPILED = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 1)
    def forward(self, x):
        return self.b(self.a(x).relu())
model = Model()
model.compile(backend="aot_eager", fullgraph=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for number in range(2):
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""
FACTORS = """
model = nn.Module()
model.a, model.b, model.zero = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Parameter(torch.zeros(4, 4))
optimizer = torch.optim.AdamW([*model.a.parameters(), *model.b.parameters(), model.zero])
for number in range(2):
    (torch.einsum("ni,ij,nj->n", model.a(x), model.zero, model.b(x)) - 1).square().mean().backward()
    optimizer.step()
"""
LEARNS, CUT, FROZEN, APART = "learns", "cut", "frozen", "not in optimizer"
CASES = {
    "a model made after the first forward": (LATE, {"trunk: Linear": {CUT}, "head: Linear": {LEARNS}}),
    "a head made in the forward": (GROWN, {"model: Model": {LEARNS, APART}}),
    "lazy modules": (LAZY, {"model: Sequential": {LEARNS, CUT}}),
    "two optimizers in turns": (GAN, {"maker: Linear": {LEARNS}, "judge: Linear": {LEARNS}}),
    "a target network": (TEACHER, {"agent: Agent": {LEARNS, FROZEN}}),
    "steps by hand": (BY_HAND, {}),
    "gradients put in place by hand": (GIVEN_GRADIENTS, {"model: Sequential": {LEARNS}}),
    "a closure": (CLOSURE, {"model: Sequential": {LEARNS, CUT}}),
    "a compiled model": (COMPILED, {"model: Model": {LEARNS}}),
    "behind a factor of zeros": (FACTORS, {"model: Module": {LEARNS}}),
}


@pytest.fixture
def explain(monkeypatch, tmp_path, capfd):
    """Run a script in this process; return its tables, and what was printed to stderr."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])

    def run(text, *flags):
        script, found = tmp_path / "train.py", tmp_path / "found.json"
        script.write_text(HEAD + text)
        gc.collect()  # models of other tests, which this process still holds
        assert main(["explain", *flags, "--json", str(found), str(script)]) == 0
        return json.loads(found.read_text()), capfd.readouterr().err

    return run


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_every_shape_of_script_is_explained(case, explain):
    text, expected = CASES[case]
    found, printed = explain(text)
    verdicts = {model: {each["verdict"] for each in table.values()} for model, table in found.items()}
    assert verdicts == expected
    assert "could not be explained" not in printed
    assert ("compiled" in printed) == (text is COMPILED)
    assert ("Nothing is explained" in printed) == (text is BY_HAND)
    assert "written to after the step" not in printed
    assert not torch._C._len_torch_function_stack()


def test_a_head_that_no_optimizer_holds_and_a_target_network_are_told_apart(explain):
    table = explain(GROWN)[0]["model: Model"]
    assert {name for name, each in table.items() if each["verdict"] == APART} == {"forgotten.weight", "forgotten.bias"}
    found, printed = explain(TEACHER)
    table = found["agent: Agent"]
    assert {name for name, each in table.items() if each["verdict"] == FROZEN} == {"target.weight", "target.bias"}
    assert "a target network?" in table["target.weight"]["reason"]
    assert "outside: Linear is not explained: it ran, but no gradient came to it, and no optimizer holds it." in printed
    assert "not in the model" not in printed  # the temperature learns, wherever it is


@pytest.mark.parametrize(("step", "verdicts"), [(1, {"0": LEARNS, "1": LEARNS}), (3, {"0": CUT, "1": LEARNS})])
def test_the_step_that_is_asked_for_is_the_one_that_is_explained(step, verdicts, explain):
    text = """
model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for number in range(1, 5):
    watched.append(torch._C._len_torch_function_stack())
    h = model[0](x)
    model[1](h.detach() if number == 3 else h).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
print(watched)
"""
    (table,) = explain("watched = []" + text, "--step", str(step))[0].values()
    assert {name: table[f"{name}.weight"]["verdict"] for name in verdicts} == verdicts


def test_without_a_copy_it_is_said_what_is_not_seen(explain):
    text = CASES["two optimizers in turns"][0].replace("lr=0.1", "lr=0.0")
    found, printed = explain(text, "--light")
    assert {each["verdict"] for table in found.values() for each in table.values()} == {LEARNS}
    assert "No copy was kept (light)" in printed
    assert "light" not in explain(text)[1]


def test_processes_that_do_not_agree_are_named():
    store = dist.HashStore()
    store.set("frostline/1", json.dumps({"model.a": "learns", "model.b": "cut"}))
    assert _difference(store, 1, {"model.a": "learns", "model.b": "cut"}) == ""
    line = _difference(store, 1, {"model.a": "learns", "model.b": "unused", "model.c": "learns"})
    assert line == "Rank 1 does not agree: model.b: cut (here: unused), model.c: not there (here: learns)."


def test_a_process_that_never_comes_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("frostline.probe.script.ranks._WAIT", 0.1)
    assert "Rank 2 has not come" in _difference(dist.HashStore(), 2, {})
