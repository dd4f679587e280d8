"""Drawn models with drawn faults: `explain`, a real step, and what follows from the faults agree.

A model is a chain of layers, each with one of the `FAULTS`, and a healthy head. What must come out follows from the
chain read backwards: a fault lets the gradient pass, makes it zero, or cuts it, for its own layer and all before it;
a weight that is fed zeros has a gradient of zero.
"""

import contextlib
import random

import pytest
import torch
from torch import nn

import frostline as fl

FAULTS = [
    "healthy",
    "healthy",
    "detached",
    "no_grad",
    "times zero",
    "skipped",
    "frozen",
    "frozen late",
    "missing",
    "rate 0",
    "tiny rate",
]
OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.1),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.1),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.1),
}


class Chain(nn.Module):
    def __init__(self, faults, dtype):
        super().__init__()
        self.faults = faults
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in faults)
        self.head = nn.Linear(3, 1)
        with torch.no_grad():
            for layer in self.layers:
                layer.bias.fill_(0.25)  # not so small that a tiny rate could move it
                layer.weight.copy_(layer.weight.sign() * layer.weight.abs().clamp(min=0.1))
        self.to(dtype)

    def forward(self, x):
        for fault, layer in zip(self.faults, self.layers, strict=True):
            if fault == "skipped":
                continue
            with torch.no_grad() if fault == "no_grad" else contextlib.nullcontext():
                x = torch.tanh(layer(x))
            x = x.detach() if fault == "detached" else x * 0 if fault == "times zero" else x
        return self.head(x)


class Case:
    """A drawn model, its loss and its optimizers, after some steps."""

    def __init__(self, draw):
        self.faults = [draw.choice(FAULTS) for _ in range(draw.randint(1, 5))]
        self.optimizer, self.steps = draw.choice(list(OPTIMIZERS)), draw.choice([0, 0, 1, 2])
        self.to_none, self.several = draw.random() < 0.5, draw.random() < 0.3
        self.dtype = torch.bfloat16 if "tiny rate" in self.faults else torch.float32
        torch.manual_seed(draw.randrange(1 << 30))
        self.model, self.x = Chain(self.faults, self.dtype), torch.randn(6, 3, dtype=self.dtype)
        rates = {"rate 0": 0.0, "tiny rate": 1e-7}
        groups = [{"params": self.model.head.parameters()}]
        for fault, layer in zip(self.faults, self.model.layers, strict=True):
            layer.requires_grad_(fault != "frozen")
            if fault != "missing":
                groups.append({"params": layer.parameters(), **({"lr": rates[fault]} if fault in rates else {})})
        make = OPTIMIZERS[self.optimizer]
        self.optimizers = [make([group]) for group in groups] if self.several else [make(groups)]
        for _ in range(self.steps):
            self.loss().backward()
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=self.to_none)
        for fault, layer in zip(self.faults, self.model.layers, strict=True):
            layer.requires_grad_(fault not in ("frozen", "frozen late"))

    def loss(self):
        return (self.model(self.x) - 1).square().mean()

    def expected(self, trial):
        """Return name -> verdict from the faults; whether a tensor without gradient moves is read from the trial."""
        verdicts, arrives = {}, "nonzero"
        for index, fault in reversed(list(enumerate(self.faults))):
            if fault in ("detached", "no_grad"):
                arrives = "nothing"
            elif fault == "times zero" and arrives == "nonzero":
                arrives = "zero"
            for part in ("weight", "bias"):
                name = f"layers.{index}.{part}"
                verdicts[name] = self.verdict(fault, self.gradient(part, index, arrives), trial[name].entries_moved > 0)
        for part in ("weight", "bias"):
            name = f"head.{part}"
            verdicts[name] = self.verdict(
                "healthy", self.gradient(part, None, "nonzero"), trial[name].entries_moved > 0
            )
        return verdicts

    def gradient(self, part, index, arrives):
        """Return the gradient of a weight or bias; a weight's is zero, too, if the layer before it feeds zeros."""
        before = [fault for fault in self.faults[:index] if fault != "skipped"][-1:]
        return "zero" if arrives == "nonzero" and part == "weight" and before == ["times zero"] else arrives

    def verdict(self, fault, arrives, moved):
        if fault in ("frozen", "frozen late"):
            return "moves without gradient" if moved else "frozen"
        if fault == "skipped":
            return "unused"
        if arrives == "nothing":
            return "frozen" if fault == "missing" else "cut"  # no optimizer holds it: it is not meant to train
        if fault == "missing":
            return "not in optimizer"
        if arrives == "zero" and moved:
            return "moves without gradient"
        if fault == "rate 0":
            return "learning rate 0"
        if arrives == "zero":
            return "zero gradient"
        return "learns" if moved else "rounds away"

    def __repr__(self):
        return f"{self.faults} {self.optimizer} steps={self.steps} to_none={self.to_none} several={self.several}"


@pytest.mark.parametrize("seed", range(10))
def test_verdicts_of_drawn_faults_are_those_of_the_draw_and_of_a_real_step(seed, agree):
    draw = random.Random(seed)
    print(f"seed {seed}")
    for _ in range(30):
        case = Case(draw)
        trial = fl.trial_step(case.model, case.loss, case.optimizers)
        explanation = fl.explain(case.model, case.loss, case.optimizers)
        agree(explanation, trial)
        verdicts = {name: finding["verdict"] for name, finding in explanation.to_dict().items()}
        assert verdicts == case.expected(trial), case


def test_the_draws_reach_every_fault_and_most_verdicts():
    draw, seen = random.Random(0), set()
    for _ in range(60):
        case = Case(draw)
        seen |= set(case.expected(fl.trial_step(case.model, case.loss, case.optimizers)).values())
    assert seen >= {
        "cut",
        "unused",
        "not in optimizer",
        "moves without gradient",
        "learning rate 0",
        "zero gradient",
        "rounds away",
        "frozen",
        "learns",
    }
