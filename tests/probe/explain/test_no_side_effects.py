"""An explanation leaves nothing behind."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import frostline as fl

from .cases import two_layers, verdicts
from .cuts import OneOfTwo


class Everything(nn.Module):
    """Dropout, batch statistics, a counter, a custom Function, a checkpoint, a partial table."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.cut_off = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        self.calls = 0

    def forward(self, ids):
        self.calls += 1
        h = self.drop(self.norm(self.embed(ids)))
        h = h + OneOfTwo.apply(h, self.cut_off(h))
        return checkpoint(self.head, h, use_reentrant=False)


def run(probe, steps=6):
    """Losses, weights and the optimizer's state of a run, with `probe` called between and within its steps."""
    torch.manual_seed(0)
    model = Everything()
    plan = fl.train_only(model, {"embed.weight": fl.rows([1, 2, 3]), "[!e]*": fl.everything})
    optimizer = torch.optim.AdamW(plan.parameters(), lr=0.05)
    ids, y = torch.randint(4, (8,)), torch.randint(2, (8,))

    def loss_fn():
        return F.cross_entropy(model(ids), y)

    losses = []
    for step in range(steps):
        probe(model, loss_fn, optimizer)
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        loss = loss_fn()
        probe(model, loss_fn, optimizer)
        loss.backward()
        probe(model, loss_fn, optimizer)
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict(), optimizer.state_dict()["state"], model.calls, torch.get_rng_state()


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return a == b


def test_a_run_with_explanations_is_the_same_as_one_without():
    said = []

    def probe(model, loss_fn, optimizer):
        said.append(fl.explain(model, loss_fn, optimizer).to_dict()["cut_off.weight"]["verdict"])

    quiet, probed = run(lambda *arguments: None), run(probe)
    assert all(same(a, b) for a, b in zip(quiet, probed, strict=True))
    assert len(set(quiet[0])) == 6
    assert set(said) == {"cut"}


def test_a_run_in_which_explanations_raise_is_the_same_too():
    def probe(model, loss_fn, optimizer):
        def broken():
            loss_fn().backward()
            raise KeyError("broken")

        with pytest.raises(KeyError, match="broken"):
            fl.explain(model, broken, optimizer)

    quiet, probed = run(lambda *arguments: None), run(probe)
    assert all(same(a, b) for a, b in zip(quiet, probed, strict=True))


def test_torch_is_as_it_was_afterwards():
    def state():
        return torch.autograd.Function.__dict__["apply"], nn.Parameter.__dict__["__new__"]

    before = state()
    model, loss_fn = two_layers()
    fl.explain(model, loss_fn)
    with pytest.raises(ZeroDivisionError):
        fl.explain(model, lambda: 1 / 0)
    assert state() == before
    assert all(not parameter._backward_hooks and parameter.grad is None for parameter in model.parameters())


def test_it_works_under_no_grad_and_in_inference_mode():
    model, loss_fn = two_layers()
    with torch.no_grad():
        assert set(verdicts(model, loss_fn).values()) == {"learns"}
    with torch.inference_mode():
        assert set(verdicts(model, loss_fn).values()) == {"learns"}


def test_a_step_under_way_can_still_be_finished():
    model, _ = two_layers()
    features = model[0](torch.ones(2, 4))
    fl.explain(model, lambda: model[2](features.tanh()).sum())
    features.sum().backward()
    assert model[0].weight.grad is not None
    assert model[2].weight.grad is None
