"""The average is the one written out by hand, and it comes and goes without a trace."""

from __future__ import annotations

import torch
from torch import nn

from frostline.tagger.training.optimizer import Average


def test_each_step_counts_by_its_share_and_early_steps_are_soon_forgotten() -> None:
    draw = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 2, generator=draw))
    average, expected = Average([weight], keep=0.5), weight.detach().clone()
    for step in range(1, 20):
        with torch.no_grad():
            weight.add_(torch.randn(3, 2, generator=draw))
        average.step()
        keep = min(0.5, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * weight.detach()
        torch.testing.assert_close(average.values[0], expected)


def test_the_own_values_are_back_bit_for_bit_even_after_an_error() -> None:
    weight = nn.Parameter(torch.tensor([1.1, -0.0]))
    average = Average([weight], keep=0.9)
    with torch.no_grad():
        weight.mul_(3)
    before = weight.detach().clone()
    try:
        with average.in_place():
            assert weight.tolist() == torch.tensor([1.1, -0.0]).tolist()
            raise RuntimeError
    except RuntimeError:
        pass
    assert torch.equal(weight.detach().view(torch.int32), before.view(torch.int32))


def test_keeping_nothing_is_the_last_step() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    average = Average([weight], keep=0.0)
    with torch.no_grad():
        weight.fill_(7.0)
    average.step()
    assert average.values[0].item() == 7.0
