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


def test_nothing_keeps_a_partial_tensor_longer_than_its_model() -> None:
    model = tied()
    seen = weakref.ref(model.embed.weight)
    model.embed(torch.tensor([1])).sum().backward()
    gc.disable()  # memory is freed at once, not when the collector runs
    try:
        torch.optim.SGD([model.embed.weight_learned], lr=0.1).step()
        assert seen() is model.embed.weight
        frozen = weakref.ref(model.embed._parameters["weight"])
        del model
        assert seen() is None
        assert frozen() is None
    finally:
        gc.enable()


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


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_weight_first_seen_without_gradients_has_them_in_training(mode) -> None:
    model = tied()
    with mode():
        held = model.embed.weight
    held.square().sum().backward()
    assert torch.equal(model.embed.weight.grad, 2 * model.embed.weight_learned)


def test_what_was_held_in_inference_mode_does_not_stop_training() -> None:
    model = tied()
    with torch.inference_mode():
        held = model.embed.weight
    model.head(model.embed(torch.tensor([1, 2]))).sum().backward()
    assert (model.embed.weight.grad != 0).any()
    assert torch.equal(held.grad, model.embed.weight.grad)
