"""The loss of adversarial training: its value and gradient against passes written out by hand, and what it leaves."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from torch.utils.checkpoint import checkpoint

import frostline as fl

IDS, LABELS = torch.tensor([[1, 2, 0], [3, 4, 4], [5, 1, 2]]), torch.tensor([0, 1, 1])


MASK = (torch.arange(24).view(6, 4) % 3 == 0) & (torch.arange(6) > 0)[:, None]  # not of row 0, the padding


class Net(nn.Module):
    """Everything that a second pass disturbs: dropout, BatchNorm, a counter, sampled noise, spectral norm's vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(6, 4, padding_idx=0)
        self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.3)
        self.hidden = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8))
        self.head = nn.Linear(8, 2)
        self.noise = torch.Generator().manual_seed(7)
        self.register_buffer("average", torch.zeros(8))

    def forward(self, ids: Tensor) -> Tensor:
        vectors = self.norm(self.embed(ids))
        noise = torch.rand(4, generator=self.noise)
        hidden = self.drop(self.hidden(vectors + noise).tanh())
        self.average.mul_(0.9).add_(hidden.detach().mean((0, 1)), alpha=0.1)  # in place, and read by the graph
        return self.head(hidden * (1 + self.average)).mean(1)


def _loss_fn(model: nn.Module) -> Callable[[], Tensor]:
    return lambda: cross_entropy(model(IDS), LABELS)


def _by_hand(model: Net, delta: Tensor, weight: float) -> tuple[Tensor, Net]:
    """Return the loss by two copies of the model whose passes begin at the same random numbers, and the clean copy."""
    clean, moved = copy.deepcopy(model), copy.deepcopy(model)
    for twin in (clean, moved):
        twin.noise = torch.Generator()
        twin.noise.set_state(model.noise.get_state())
        for name, parameter in twin.named_parameters():  # gradients go to the parameters of the first
            parameter.data = dict(model.named_parameters())[name].data
    hook = moved.embed.register_forward_hook(lambda module, inputs, output: output + delta)
    with torch.random.fork_rng(devices=[]), hook:
        adversarial = _loss_fn(moved)()
    with torch.random.fork_rng(devices=[]):
        loss = _loss_fn(clean)() + weight * adversarial
        loss.backward()
    for mine, other in zip(clean.parameters(), moved.parameters(), strict=True):
        mine.grad = mine.grad + other.grad
    return loss, clean


@pytest.mark.parametrize(("kind", "steps"), [("fgm", 1), ("pgd", 3)])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_loss_and_its_gradient_are_those_of_two_passes_with_the_same_random_numbers(
    kind: Any, steps: int, weight: float
) -> None:
    model = Net()
    delta = fl.adversarial.perturb(_loss_fn(model), model.embed, epsilon=0.5, steps=steps).delta
    expected, twin = _by_hand(model, delta, weight)
    drawn = torch.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(drawn)
        _loss_fn(copy.deepcopy(model))
    loss = fl.adversarial.loss(_loss_fn(model), model.embed, epsilon=0.5, steps=steps, kind=kind, weight=weight)
    loss.backward()
    assert torch.allclose(loss, expected, rtol=1e-6)
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad, atol=1e-7)
    for (name, mine), other in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(mine, other), name  # as after the clean pass alone
    assert model.norm.num_batches_tracked == 1
    assert torch.equal(model.noise.get_state(), twin.noise.get_state())


def test_the_random_numbers_after_it_are_those_after_a_clean_pass() -> None:
    model = Net()
    torch.manual_seed(1)
    _loss_fn(copy.deepcopy(model))()
    expected = torch.rand(3)
    torch.manual_seed(1)
    fl.adversarial.loss(_loss_fn(model), model.embed, epsilon=0.5, kind="pgd", steps=2)
    assert torch.equal(torch.rand(3), expected)


def test_an_adversarial_weight_of_zero_trains_as_without_it() -> None:
    def run(adversarial: bool) -> list[Tensor]:
        torch.manual_seed(1)
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        for _ in range(4):
            optimizer.zero_grad()
            loss_fn = _loss_fn(model)
            loss = fl.adversarial.loss(loss_fn, model.embed, epsilon=0.5, weight=0.0) if adversarial else loss_fn()
            loss.backward()
            optimizer.step()
        return [value.clone() for value in model.state_dict().values()]

    assert all(map(torch.equal, run(True), run(False)))
    assert any((value != first).any() for value, first in zip(run(True), Net().state_dict().values(), strict=True))


def test_training_against_it_lowers_the_loss_under_attack() -> None:
    def under_attack(adversarial: bool) -> float:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Linear(12, 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(60):
            optimizer.zero_grad()
            loss_fn = _loss_fn(model)
            loss = fl.adversarial.loss(loss_fn, model[0], epsilon=0.5) if adversarial else loss_fn()
            loss.backward()
            optimizer.step()
        return fl.adversarial.perturb(_loss_fn(model), model[0], epsilon=0.5).loss.item()

    assert under_attack(adversarial=True) < 0.7 * under_attack(adversarial=False)


def test_vat_is_the_divergence_in_the_direction_in_which_predictions_change_most() -> None:
    """For a linear model with small epsilon the best direction is known: the top eigenvector of the Fisher matrix."""
    torch.manual_seed(0)
    table, head = nn.Embedding(6, 5).double(), nn.Linear(5, 2).double()
    ids = torch.tensor([1, 3])

    def loss_fn() -> tuple[Tensor, Tensor]:
        logits = head(table(ids))
        return cross_entropy(logits, torch.tensor([0, 1])), logits

    epsilon = 1e-2
    found = fl.adversarial.loss(loss_fn, table, epsilon=epsilon, kind="vat", weight=3.0, steps=2)
    clean, logits = loss_fn()
    direction = head.weight[0] - head.weight[1]  # of two classes, the only way in which the prediction changes
    far = epsilon * direction / direction.norm()
    divergences = []
    for sign in (1, -1):
        moved = log_softmax(head(table(ids) + sign * far), -1)
        divergences.append(kl_div(moved, log_softmax(logits, -1), log_target=True, reduction="none").sum(-1))
    low, high = (pick(*divergences).mean().detach() for pick in (torch.minimum, torch.maximum))
    assert low > 0
    found, clean = found.detach(), clean.detach()
    assert clean + 3 * low - 1e-9 <= found <= clean + 3 * high + 1e-9
    alone = fl.adversarial.loss(lambda: loss_fn()[1], table, epsilon=epsilon, kind="vat", steps=2)
    assert low - 1e-9 <= alone.detach() <= high + 1e-9


def test_vat_updates_statistics_once_and_moves_what_learns() -> None:
    model = Net()

    def loss_fn() -> tuple[Tensor, Tensor]:
        logits = model(IDS)
        return cross_entropy(logits, LABELS), logits

    fl.adversarial.loss(loss_fn, model.embed, epsilon=0.5, kind="vat").backward()
    assert model.norm.num_batches_tracked == 1
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    draws = {fl.adversarial.loss(lambda: model(IDS), model.embed, epsilon=0.5, kind="vat").item() for _ in range(3)}
    assert len(draws) == 3


@pytest.mark.parametrize("learns", [fl.rows([1, 3, 4]), fl.entries(MASK)])
def test_a_partial_table_and_head_get_the_gradient_of_plain_ones(learns: Any) -> None:
    plain, some = Net(), Net()
    fl.train_only(some, {"*": fl.everything, "embed.weight": learns, "head.weight": fl.rows([1])})
    for model in (plain, some):
        torch.manual_seed(1)
        for _ in range(2):  # gradients of two steps add up
            fl.adversarial.loss(_loss_fn(model), model.embed, epsilon=0.5).backward()
    dense = plain.embed.weight.grad
    assert torch.allclose(some.embed.weight.grad, dense[MASK] if "entries" in repr(learns) else dense[[1, 3, 4]])
    assert (some.embed.weight.grad != 0).all()
    assert torch.allclose(some.head.weight.grad, plain.head.weight.grad[[1]])
    assert torch.allclose(some.hidden.parametrizations.weight.original.grad,
                          plain.hidden.parametrizations.weight.original.grad)  # fmt: skip
    assert torch.equal(some.norm.running_mean, plain.norm.running_mean)


def test_under_autocast_it_is_the_loss_of_two_passes_under_autocast() -> None:
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 8), nn.Tanh(), nn.Flatten(), nn.Linear(24, 2))
    with torch.autocast("cpu", torch.bfloat16):
        delta = fl.adversarial.perturb(_loss_fn(model), model[0], epsilon=0.5).delta
        loss = fl.adversarial.loss(_loss_fn(model), model[0], epsilon=0.5)
    loss.backward()
    found = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        clean = _loss_fn(model)()
        with fl.adversarial.applied(model[0], delta):
            expected = clean + _loss_fn(model)()
    expected.backward()
    assert torch.equal(loss, expected)
    for mine, parameter in zip(found, model.parameters(), strict=True):
        assert torch.allclose(mine, parameter.grad, atol=2e-2)
        assert (mine != 0).any()


@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_may_be_checkpointed_but_not_the_module_itself(reentrant: bool) -> None:
    torch.manual_seed(0)
    table, layer = nn.Embedding(6, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.5))

    def loss(inside: bool, checkpointed: bool = True) -> Tensor:
        if inside:
            dummy = torch.ones(1, requires_grad=True)
            return checkpoint(lambda x, y: layer(table(x)) * y, IDS, dummy, use_reentrant=reentrant).square().sum()
        if checkpointed:
            return checkpoint(layer, table(IDS), use_reentrant=reentrant).square().sum()
        return layer(table(IDS)).square().sum()

    found = []
    for checkpointed in (True, False):
        torch.manual_seed(1)
        table.zero_grad()
        fl.adversarial.loss(partial(loss, False, checkpointed), table, epsilon=0.5).backward()
        found.append(table.weight.grad)
    assert torch.allclose(*found)
    assert (found[0] != 0).any()
    with pytest.raises(fl.ProbeError, match="Embedding: called inside a checkpoint"):
        fl.adversarial.loss(lambda: loss(True), table, epsilon=0.5)
    assert not table._forward_hooks


def test_several_calls_and_marks_are_trained_against() -> None:
    table, head = nn.Embedding(6, 4), nn.Linear(4, 2)

    def loss(together: bool) -> Tensor:
        vectors = table(IDS).sum(1) if together else sum(table(IDS[:, j]) for j in range(3))
        return cross_entropy(head(fl.mark(vectors, "bag")), LABELS)

    one, several = (fl.adversarial.loss(partial(loss, both), table, epsilon=0.5) for both in (True, False))
    assert torch.allclose(one, several)
    assert loss(True) < fl.adversarial.loss(lambda: loss(True), "bag", epsilon=0.5) < one


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epsilon": 0.0}, "epsilon: expected a finite number above 0, got 0.0."),
        ({"epsilon": 1.0, "kind": "freelb"}, "kind: expected 'fgm', 'pgd' or 'vat', got 'freelb'."),
        ({"epsilon": 1.0, "steps": 2}, "steps: 'fgm' takes one step, got 2. Pass kind='pgd' for more."),
        ({"epsilon": 1.0, "weight": -1.0}, "weight: expected a finite number, 0 or more, got -1.0."),
        ({"epsilon": 1.0, "kind": "vat", "norm": "linf"}, "norm: 'vat' needs 'l2', got 'linf'."),
    ],
)
def test_bad_options_are_named_and_nothing_has_run(options: dict[str, Any], says: str) -> None:
    model, before = Net(), torch.get_rng_state()
    with pytest.raises(ValueError, match=re.escape(says)):
        fl.adversarial.loss(_loss_fn(model), model.embed, **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.norm.num_batches_tracked == 0


def test_vat_without_logits_is_an_error() -> None:
    model = Net()
    with pytest.raises(fl.ProbeError, match=re.escape("it must return the logits, shape (*, K), or (loss, logits)")):
        fl.adversarial.loss(_loss_fn(model), model.embed, epsilon=0.5, kind="vat")


def test_a_pass_that_raises_leaves_everything_as_it_was() -> None:
    model, calls = Net(), []

    def loss() -> Tensor:
        calls.append(True)
        found = _loss_fn(model)()
        if len(calls) == 2:  # the pass with the perturbation
            raise ArithmeticError
        return found

    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    with contextlib.suppress(ArithmeticError):
        fl.adversarial.loss(loss, model.embed, epsilon=0.5)
    assert len(calls) == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not model.embed._forward_hooks
