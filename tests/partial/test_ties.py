"""A tie is detected by `is` and made by assignment, wherever the partial tensor was used in between."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

import frostline as fl


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 3)
        self.head = nn.Linear(3, 6, bias=False)
        self.head.weight = self.embed.weight


def tied() -> Tied:
    torch.manual_seed(0)
    model = Tied()
    fl.train_only(model, {"embed.weight": fl.rows([1, 4])})
    return model


def test_a_tied_weight_is_the_same_object_under_both_names() -> None:
    model = tied()
    assert model.embed.weight is model.head.weight
    table, head = getattr(model.embed, "weight", None), getattr(model.head, "weight", None)
    assert table is head


def test_weights_that_are_not_tied_are_not_the_same_object() -> None:
    model = nn.ModuleList([nn.Embedding(6, 3), nn.Embedding(6, 3)])
    fl.train_only(model, {"*": fl.rows([1])})
    assert model[0].weight is not model[1].weight


def test_nothing_keeps_a_partial_tensor_that_nobody_holds() -> None:
    model = tied()
    seen = weakref.ref(model.embed.weight)
    gc.collect()
    assert seen() is None


def test_a_weight_whose_memory_has_changed_is_not_cached() -> None:
    model = tied()
    held = model.embed.weight
    model.embed._parameters["weight"].data = torch.zeros(6, 3)
    assert model.embed.weight is not held
    assert model.embed.weight[0].tolist() == [0.0, 0.0, 0.0]


def test_a_weight_of_an_earlier_plan_is_not_cached() -> None:
    model = tied()
    held = model.embed.weight
    fl.train_only(model, {"embed.weight": fl.rows([0])})
    assert model.embed.weight is not held
    assert model.embed.weight.learned_indices.index[0].tolist() == [0]


def test_a_weight_first_seen_without_gradients_still_catches_a_lost_one() -> None:
    """A tensor made under no_grad has no hook against a gradient for the whole, so training gets a new one."""
    model = tied()
    with torch.no_grad():
        held = model.embed.weight
    assert model.embed.weight is not held

    class Through(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight):  # type: ignore[no-untyped-def]
            return weight.sum()

        @staticmethod
        def backward(ctx, gradient):  # type: ignore[no-untyped-def]
            return gradient.expand(6, 3)

    with pytest.raises(fl.PartialTensorError, match="a gradient reached a partial tensor as a whole"):
        Through.apply(model.embed.weight).backward()


def test_what_was_held_in_inference_mode_does_not_stop_training() -> None:
    model = tied()
    with torch.inference_mode():
        held = model.embed.weight
    model.head(model.embed(torch.tensor([1, 2]))).sum().backward()
    assert (model.embed.weight.grad != 0).any()
    assert held is not model.embed.weight
