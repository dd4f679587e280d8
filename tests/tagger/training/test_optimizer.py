"""Steps are those of torch's AdamW, and the average is that computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.tagger import TaggerConfig
from frostline.tagger.training.optimizer import EMA, Optimizer


@pytest.fixture(params=["fused", "plain"])
def fused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the device has a fused kernel."""
    adamw = torch.optim.AdamW

    def without_kernel(*args: object, fused: bool = False, **given: object) -> torch.optim.AdamW:
        if fused:
            raise RuntimeError("no fused kernel")
        return adamw(*args, **given)  # type: ignore[arg-type]

    if request.param == "plain":
        monkeypatch.setattr(torch.optim, "AdamW", without_kernel)
    return bool(request.param == "fused")


def test_every_step_is_that_of_adamw_also_where_some_have_no_gradient(fused: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = ([nn.Parameter(torch.randn(size)) for size in ((5, 3), (7,), (2, 2))] for _ in range(2))
    for weight, twin in zip(ours, theirs, strict=True):
        twin.data.copy_(weight.data)
    before = [weight.detach().clone() for weight in ours]
    optimizer = Optimizer(ours, TaggerConfig(learning_rate=0.01, weight_decay=0.1, max_grad_norm=1.5), steps=6)
    adamw = torch.optim.AdamW(theirs, weight_decay=0.1, fused=fused)
    for step in range(6):
        adamw.param_groups[0]["lr"] = 0.01 * (1 - 0.9 * step / 6)
        optimizer.zero_grad()
        adamw.zero_grad()
        for index in {0, 1} if step % 2 else {0}:  # the last has none, ever
            gradient = torch.randn_like(ours[index])
            ours[index].grad, theirs[index].grad = gradient, gradient.clone()
        torch.nn.utils.clip_grad_norm_(theirs, 1.5)
        optimizer.step(ours)
        adamw.step()
        assert all(torch.equal(weight, twin) for weight, twin in zip(ours, theirs, strict=True))
    assert [not torch.equal(weight, was) for weight, was in zip(ours, before, strict=True)] == [True, True, False]
    tensors = optimizer.tensors()
    assert [float(tensors[f"adamw.{index}.step"]) for index in range(3)] == [6, 3, 0]


def test_each_step_has_its_weight_and_early_steps_are_soon_forgotten() -> None:
    draw = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 2, generator=draw))
    ema, expected = EMA([weight], decay=0.5), weight.detach().clone()
    for step in range(1, 20):
        with torch.no_grad():
            weight.add_(torch.randn(3, 2, generator=draw))
        ema.step()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach()
        torch.testing.assert_close(ema.values[0], expected)


def test_parameters_get_their_own_values_back_bit_for_bit_even_after_an_error() -> None:
    weight = nn.Parameter(torch.tensor([1.1, -0.0]))
    ema = EMA([weight], decay=0.9)
    with torch.no_grad():
        weight.mul_(3)
    before = weight.detach().clone()
    try:
        with ema.applied():
            assert weight.tolist() == torch.tensor([1.1, -0.0]).tolist()
            raise RuntimeError
    except RuntimeError:
        pass
    assert torch.equal(weight.detach().view(torch.int32), before.view(torch.int32))


def test_a_decay_of_0_keeps_the_last_step() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    ema = EMA([weight], decay=0.0)
    with torch.no_grad():
        weight.fill_(7.0)
    ema.step()
    assert ema.values[0].item() == 7.0
