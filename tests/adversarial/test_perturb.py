"""The perturbation has norm epsilon at most and the right direction, and looking for it changes nothing."""

from __future__ import annotations

import copy
import math
import random
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.adversarial import Perturbation, applied, perturb

IDS = torch.tensor([[1, 2, 0], [3, 4, 4]])
W = torch.tensor([[3.0, -4.0], [0.0, 2.0]])


def _bilinear() -> tuple[nn.Embedding, Any]:
    """A table, and a loss of its output whose gradient is known: W of shape (T, D) at each sentence, B = 1, T = 2."""
    table = nn.Embedding(4, 2)
    return table, lambda: (table(torch.tensor([[1, 2]])) * W).sum()


def test_one_step_goes_as_far_as_epsilon_along_the_gradient() -> None:
    table, loss = _bilinear()
    found = perturb(loss, table, epsilon=0.5)
    assert isinstance(found, Perturbation)
    assert torch.allclose(found.delta, torch.tensor([[[0.3, -0.4], [0.0, 0.5]]]))
    assert torch.allclose(found.loss, loss() + 0.5 * (5 + 2))
    assert not found.delta.requires_grad
    assert not found.loss.requires_grad
    whole = perturb(loss, table, epsilon=0.5, per="sentence")
    assert torch.allclose(whole.delta, 0.5 * W[None] / math.sqrt(29))
    signs = perturb(loss, table, epsilon=0.5, norm="linf")
    assert torch.equal(signs.delta, torch.tensor([[[0.5, -0.5], [0.0, 0.5]]]))


class Net(nn.Module):
    """A reader of word vectors with dropout and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(6, 4, padding_idx=0)
        self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.3)
        self.hidden, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        vectors = self.embed(ids) * (ids != 0)[..., None]
        return self.head(self.drop(self.hidden(self.norm(vectors)).tanh())).mean(1)


def _loss(model: Net) -> Any:
    return lambda: nn.functional.cross_entropy(model(IDS), torch.tensor([0, 1]))


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("per", ["token", "sentence"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_no_part_is_longer_than_epsilon_and_padding_stays(norm: Any, per: Any, steps: int) -> None:
    model = Net()
    delta, _ = perturb(_loss(model), model.embed, epsilon=0.3, steps=steps, norm=norm, per=per)
    assert delta.shape == (2, 3, 4)
    assert (delta[0, 2] == 0).all()
    lengths = delta.abs().amax(-1) if norm == "linf" else delta.norm(dim=-1)
    if (norm, per) == ("l2", "sentence"):
        lengths = delta.flatten(1).norm(dim=1)
    assert (lengths <= 0.3 * (1 + 1e-6)).all()
    assert lengths.max() > 0.3 * (1 - 1e-5)


def test_more_steps_find_a_higher_loss_and_a_random_direction_a_lower_one() -> None:
    model = Net().eval()
    loss = _loss(model)
    fgm, pgd = (perturb(loss, model.embed, epsilon=2.0, steps=steps).loss for steps in (1, 20))
    assert loss() < fgm < pgd
    for seed in range(20):
        noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed))
        with applied(model.embed, 2.0 * noise / noise.norm(dim=-1, keepdim=True)):
            assert loss() < fgm


def test_every_step_of_an_attack_has_the_masks_of_the_next_training_step() -> None:
    model = Net()
    delta, under = perturb(_loss(model), model.embed, epsilon=0.5, steps=3)
    with applied(model.embed, delta):
        assert torch.equal(_loss(model)(), under)


def test_an_attack_changes_nothing_and_nothing_before_the_module_needs_to_learn() -> None:
    model = Net()
    model.embed.requires_grad_(False)
    twin = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        expected = _loss(twin)()
        expected.backward()
    draw = random.getstate()
    delta, _ = perturb(_loss(model), model.embed, epsilon=0.5, steps=3)
    assert (delta != 0).any()
    assert random.getstate() == draw
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.embed._forward_hooks
    loss = _loss(model)()
    loss.backward()
    assert torch.equal(loss, expected)
    for mine, its in zip(model.parameters(), twin.parameters(), strict=True):
        assert mine.grad is its.grad is None or torch.equal(mine.grad, its.grad)


def test_a_partial_table_is_attacked_like_a_plain_one() -> None:
    model, partial = Net(), Net()
    fl.train_only(partial, {"embed.weight": fl.rows([1, 3])})
    plain = perturb(_loss(model), model.embed, epsilon=0.5, steps=2)
    found = perturb(_loss(partial), partial.embed, epsilon=0.5, steps=2)
    assert torch.equal(found.delta, plain.delta)
    assert torch.equal(found.loss, plain.loss)


def test_half_precision_and_tiny_gradients_keep_their_direction() -> None:
    table = nn.Embedding(4, 2, dtype=torch.bfloat16)
    delta, loss = perturb(lambda: (table(torch.tensor([1, 2])) * W).sum() * 1e-30, table, epsilon=0.5)
    assert delta.dtype == torch.bfloat16
    assert torch.equal(delta, torch.tensor([[0.3, -0.4], [0.0, 0.5]], dtype=torch.bfloat16))
    assert loss.isfinite()


def test_a_zero_gradient_gives_a_zero_perturbation() -> None:
    table = nn.Embedding(4, 2)
    for norm in ("l2", "linf"):
        delta, _ = perturb(lambda: (table(torch.tensor([1])) * 0).sum(), table, epsilon=1.0, steps=3, norm=norm)
        assert torch.equal(delta, torch.zeros(1, 2))


def test_compiled_models_are_attacked_too() -> None:
    import warnings

    torch._dynamo.reset()
    model = Net().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(model, backend="aot_eager")
        compiled(IDS)
        loss = lambda: nn.functional.cross_entropy(compiled(IDS), torch.tensor([0, 1]))  # noqa: E731
        found = perturb(loss, model.embed, epsilon=1.0)
        before = loss()
    assert torch.equal(found.delta, perturb(_loss(model), model.embed, epsilon=1.0).delta)
    assert found.loss > before
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epsilon": 0.0}, "epsilon: expected a finite number above 0, got 0.0."),
        ({"epsilon": math.nan}, "epsilon: expected a finite number above 0, got nan."),
        ({"epsilon": 1.0, "steps": 0}, "steps: expected a whole number, 1 or more, got 0."),
        ({"epsilon": 1.0, "norm": "l1"}, "norm: expected 'l2' or 'linf', got 'l1'."),
        ({"epsilon": 1.0, "per": "batch"}, "per: expected 'token' or 'sentence', got 'batch'."),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], says: str) -> None:
    table, loss = _bilinear()
    with pytest.raises(ValueError, match=re.escape(says)):
        perturb(loss, table, **options)


def test_a_gradient_that_is_not_finite_is_an_error() -> None:
    table = nn.Embedding(4, 2)
    with pytest.raises(fl.ProbeError, match=r"Embedding: the gradient at its output is not finite"):
        perturb(lambda: (table(torch.tensor([1])) * math.inf).sum(), table, epsilon=1.0)


def test_another_batch_and_a_module_that_is_not_called_are_errors() -> None:
    table, batches = nn.Embedding(4, 2), iter([torch.tensor([1]), torch.tensor([1, 2])])
    says = (
        "Embedding: its output has shape (2, 2), delta (1, 2). The batch must be the one that delta was computed for."
    )
    with pytest.raises(fl.ProbeError, match=re.escape(says)):
        perturb(lambda: table(next(batches)).square().sum(), table, epsilon=1.0)
    says = "Embedding: not called in the block, so nothing was perturbed"
    with pytest.raises(fl.ProbeError, match=says), applied(table, torch.ones(2)):
        pass
    assert not table._forward_hooks
