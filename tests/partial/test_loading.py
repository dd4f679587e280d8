"""Checkpoints that are read into the model's own memory, or onto a model without data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

import frostline as fl

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # dcp says so in one process


def make(dtype: torch.dtype | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 2))
    fl.train_only(model, {"0.weight": fl.rows([5, 2], dtype=dtype), "1.bias": fl.everything})
    return model


def train(model: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.tensor([5, 1, 2])).pow(2).sum().backward()
        optimizer.step()


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(actual) == list(expected)
    assert all(torch.equal(actual[name], expected[name]) for name in actual)


def test_dcp_reads_into_the_state_dict_and_the_learned_rows_follow(tmp_path: Path) -> None:
    trained, fresh = make(), make()
    train(trained)
    dcp.save({"model": trained.state_dict()}, checkpoint_id=tmp_path)
    state = {"model": fresh.state_dict()}
    dcp.load(state, checkpoint_id=tmp_path)
    fresh.load_state_dict(state["model"])
    assert_same(values(fresh), values(trained))
    assert torch.equal(fresh[0].weight_learned, trained[0].weight_learned)
    assert not torch.equal(fresh[0].weight_learned, make()[0].weight_learned)


def test_dcp_takes_a_model_back_through_a_state_dict_made_before_it_learned_more(tmp_path: Path) -> None:
    model = make()
    train(model)
    state, then = {"model": model.state_dict()}, values(model)
    dcp.save(state, checkpoint_id=tmp_path)
    train(model)
    assert not torch.equal(model[0].weight_learned, then["0.weight"][[5, 2]])
    dcp.load(state, checkpoint_id=tmp_path)
    model.load_state_dict(state["model"])
    assert_same(values(model), then)


def test_loading_a_models_own_state_dict_changes_nothing() -> None:
    model = make(dtype=torch.float64)
    train(model)
    learned = model[0].weight_learned.detach().clone()
    assert not torch.equal(learned, learned.float().double())  # digits that the table has not
    model.load_state_dict(model.state_dict())
    assert torch.equal(model[0].weight_learned, learned)


@pytest.mark.parametrize("strict", [True, False])
def test_learned_parts_saved_by_their_names_are_refused_not_skipped(strict: bool) -> None:
    model = make()
    before = values(model)
    learns = {name: value.detach() + 1 for name, value in model.named_parameters() if value.requires_grad}
    says = "0.weight_learned: does not say which rows it holds. Load 0.weight, or use save_learned."
    with pytest.raises(RuntimeError, match=re.escape(says)):
        model.load_state_dict(learns, strict=strict)
    assert torch.equal(values(model)["0.weight"], before["0.weight"])


def test_a_zero_keeps_the_sign_it_has_in_the_checkpoint() -> None:
    model, other = make(), make()
    with torch.no_grad():
        model.get_parameter("0.weight_learned").zero_()
        other.get_parameter("0.weight_learned").fill_(-0.0)
    model.load_state_dict(values(other))
    assert model.get_parameter("0.weight_learned").signbit().all()
    with torch.no_grad():
        model.get_parameter("0.weight")[5] = 0.0
    assert model.get_parameter("0.weight_learned").signbit().tolist() == [[False] * 3, [True] * 3]


def test_a_model_without_data_takes_its_learned_rows_from_the_checkpoint() -> None:
    trained, empty = make(), make(dtype=torch.float64).to("meta")
    train(trained)
    empty.load_state_dict(values(trained), assign=True)
    assert_same(values(empty), values(trained))
    assert torch.equal(empty[0].weight_learned, trained[0].weight_learned.double())
    assert empty[0].weight_learned.dtype is torch.float64
    train(empty, 1)
    assert not torch.equal(values(empty)["0.weight"][[5, 2]], values(trained)["0.weight"][[5, 2]])
    assert torch.equal(values(empty)["0.weight"][[0, 1, 3, 4, 6]], values(trained)["0.weight"][[0, 1, 3, 4, 6]])


def test_an_optimizer_made_before_parameters_were_replaced_raises() -> None:
    model, trained = make(), make()
    train(trained)
    early = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.tensor([5])).sum().backward()
    early.step()
    model.load_state_dict(values(trained), assign=True)
    with pytest.raises(fl.StaleOptimizerError, match="has replaced, so nothing would learn there"):
        early.step()
    train(model, 1)  # with an optimizer of its own
    assert not torch.equal(model[0].weight_learned, trained[0].weight_learned)
