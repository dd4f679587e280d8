"""Looks at random moments of training runs: each run ends like the undisturbed one, bit for bit.

Everything that people train with and that a look can disturb is in these runs: dropout, BatchNorm, a counter that is
assigned anew, sampled negatives from a torch.Generator, a numpy Generator and the random numbers that everyone shares
in the data, sparse gradients, tensors that learn in part, momentum, a graph that waits for its backward.
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import frostline as fl

V, D, B = 30, 6, 8
STEPS, LOOKS, RUNS = 10, 250, 40 if "FROSTLINE_SOAK" in os.environ else 16
MOMENTS = ["before the data", "before the forward", "before the backward", "before the step", "after the step"]
LEARNS = {
    "everything": {"*": fl.everything},
    "rows": {"*": fl.everything, "embed.weight": fl.rows([1, 4, 7, 8, 20])},
    "entries": {"*": fl.everything, "mix.weight": fl.entries(torch.eye(D).bool()), "embed.weight": fl.rows(range(9))},
    "head": {"head.*": fl.everything},
}


class Net(nn.Module):
    """Scores a word against words drawn at random; every part of it changes in a forward pass, or draws."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, D, sparse=sparse)
        self.mix = nn.Linear(D, D)
        self.norm = nn.BatchNorm1d(D, momentum=None)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(D, 1)
        self.register_buffer("calls", torch.zeros(()))
        self.negatives = torch.Generator().manual_seed(3)
        self.history: list[float] = []

    def forward(self, words: Tensor) -> Tensor:
        self.calls = self.calls + 1
        others = torch.randint(V, words.shape, generator=self.negatives)
        hidden = self.norm(self.mix(self.drop(self.embed(words)) * self.embed(others)))
        self.history.append(hidden.sum().item())
        return self.drop(self.head(hidden.relu_())).squeeze(1) * (1 + self.calls / 100)


@dataclass
class Run:
    """One training run; `step` yields at each moment at which it may be looked at."""

    learns: str
    sparse: bool
    seed: int

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        np.random.seed(self.seed)
        random.seed(self.seed)
        self.draw = np.random.default_rng(self.seed)
        self.noise = torch.Generator().manual_seed(self.seed)
        self.model = Net(self.sparse)
        plan = fl.train_only(self.model, LEARNS[self.learns])
        if self.sparse:
            self.optimizer: torch.optim.Optimizer = fl.optim.RowAdamW(plan.parameters(), lr=0.02)
        else:
            self.optimizer = torch.optim.AdamW(plan.parameters(), lr=0.02)
        self.losses: list[Tensor] = []

    def batch(self) -> tuple[Tensor, Tensor]:
        words = torch.from_numpy(self.draw.integers(0, V, B))
        targets = torch.randn(B, generator=self.noise) + random.random() + float(np.random.normal())
        return words, targets

    def loss(self, batch: tuple[Tensor, Tensor] | None = None) -> Tensor:
        words, targets = self.batch() if batch is None else batch
        return (self.model(words) - targets).square().mean()

    def step(self) -> Iterator[str]:
        yield MOMENTS[0]
        batch = self.batch()
        yield MOMENTS[1]
        loss = self.loss(batch)
        yield MOMENTS[2]
        if len(self.losses) % 2 == 0:  # every second step adds to the gradients of the step before
            self.optimizer.zero_grad(set_to_none=len(self.losses) % 4 == 0)
        loss.backward()
        yield MOMENTS[3]
        self.optimizer.step()
        self.losses.append(loss.detach())
        yield MOMENTS[4]

    def end(self) -> dict[str, Tensor]:
        """Return the final state of the run, and the random numbers that would be drawn next."""
        state: dict[str, Tensor] = dict(self.model.state_dict())
        moments = self.optimizer.state_dict()["state"]
        state |= {f"{i} {key}": torch.as_tensor(value) for i, kept in moments.items() for key, value in kept.items()}
        batch = self.batch()
        return state | {
            "losses": torch.stack(self.losses),
            "history": torch.tensor(self.model.history),
            "next words": batch[0],
            "next targets": batch[1],
            "next": torch.rand(3),
            "next negatives": torch.rand(3, generator=self.model.negatives),
        }


def _fails(run: Run) -> Tensor:
    run.loss()
    run.model.eval()
    raise ArithmeticError("in the middle of a pass")


def _evaluates(run: Run) -> Tensor:
    run.model.eval()
    run.model.zero_grad()
    return run.loss()


def _learned(run: Run) -> list[Tensor]:
    return [run.model.head.weight, run.model.head.bias]


# Each way to look; the last one must raise.
LOOKS_AT: dict[str, Callable[[Run], object]] = {
    "parameters": lambda run: fl.gradients(run.loss, _learned(run)),
    "the table": lambda run: fl.gradients(run.loss, [run.model.embed.weight]),
    "an output": lambda run: fl.gradients(lambda: run.loss(), [run.model.mix, run.model.head]),
    "in eval mode": lambda run: fl.gradients(lambda: _evaluates(run), [run.model.norm]),
    "an attack": lambda run: fl.adversarial.perturb(run.loss, run.model.mix, epsilon=0.5, steps=2),
    "raises": lambda run: fl.gradients(lambda: _fails(run), _learned(run)),
}


def _train(learns: str, sparse: bool, seed: int, looks: dict[tuple[int, str], list[str]]) -> dict[str, Tensor]:
    run = Run(learns, sparse, seed)
    for step in range(STEPS):
        for moment in run.step():
            for look in looks[step, moment]:
                if look == "raises":
                    with pytest.raises(ArithmeticError):
                        LOOKS_AT[look](run)
                else:
                    LOOKS_AT[look](run)
    return run.end()


def _assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("seed", range(RUNS))
def test_a_run_that_is_looked_at_ends_like_the_undisturbed_run(seed: int) -> None:
    dice = random.Random(f"placements {seed}")
    learns, sparse = dice.choice(list(LEARNS)), dice.random() < 0.5
    print(f"seed {seed}: {learns} learns, sparse {sparse}, {LOOKS} looks")
    looks = defaultdict(list)
    for _ in range(LOOKS):
        when = dice.randrange(STEPS), dice.choice(MOMENTS)
        looks[when].append(dice.choice(list(LOOKS_AT)))
    _assert_same(_train(learns, sparse, seed, looks), _train(learns, sparse, seed, defaultdict(list)))


@pytest.mark.parametrize("learns", LEARNS)
@pytest.mark.parametrize("sparse", [False, True])
def test_these_runs_learn_and_plain_autograd_would_disturb_them(learns: str, sparse: bool) -> None:
    plain = _train(learns, sparse, 0, defaultdict(list))
    assert not torch.equal(plain["losses"][0], plain["losses"][-1])
    start = Run(learns, sparse, 0).model.state_dict()
    assert not torch.equal(start["head.weight"], plain["head.weight"])
    run = Run(learns, sparse, 0)
    for step in range(STEPS):
        for moment in run.step():
            if (step, moment) == (3, MOMENTS[0]):
                torch.autograd.grad(run.loss(), run.model.head.weight)  # writes no `.grad`, but draws random numbers
    looked = run.end()
    assert torch.equal(plain["losses"][:3], looked["losses"][:3])
    assert not torch.equal(plain["losses"][3:], looked["losses"][3:])
