"""Changing modules after a plan: it works, or one line says what to call first, and nothing has changed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import frostline as fl

FIRST = "fl.merge(model)"


def planned() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 5), nn.BatchNorm1d(5))
    fl.train_only(model, {"*weight": fl.rows([1])})
    return model


SURGERY: dict[str, Callable[[nn.Sequential], object]] = {
    "weight_norm": lambda m: parametrizations.weight_norm(m[1]),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m[1]),
    "orthogonal": lambda m: parametrizations.orthogonal(m[1]),
    "the old spectral_norm": lambda m: nn.utils.spectral_norm(m[1]),
    "prune": lambda m: prune.l1_unstructured(m[1], "weight", 0.5),
    "SyncBatchNorm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "a new Parameter": lambda m: setattr(m[1], "weight", nn.Parameter(torch.ones(5, 4))),
    "a larger table": lambda m: setattr(m[0], "weight", nn.Parameter(torch.cat([m[0].weight, torch.ones(1, 4)]))),
    "no Parameter": lambda m: setattr(m[1], "weight", None),
    "a deleted Parameter": lambda m: delattr(m[1], "weight"),
    "a tie to a plain module": lambda m: setattr(nn.Linear(4, 6), "weight", m[0].weight),
    "torch.jit.script": torch.jit.script,
    "a legacy ONNX export": lambda m: torch.onnx.export(m[:2], (torch.tensor([1, 2]),), "model.onnx", dynamo=False),
}


@pytest.mark.parametrize("name", SURGERY)
def test_surgery_after_a_plan_says_to_merge_first_and_changes_nothing(
    name: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # type: ignore[arg-type]
    model = planned()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: all of these are deprecated somewhere
        with pytest.raises(fl.PartialTensorError, match=re.escape(FIRST)) as raised:
            SURGERY[name](model)
    assert "\n" not in str(raised.value)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    model[1](model[0](torch.tensor([1, 2]))).sum().backward()
    assert model[0].weight_learned.grad.abs().sum() > 0


def test_after_a_merge_the_same_surgery_works_and_a_new_plan_can_be_made() -> None:
    model = planned()
    fl.merge(model)
    prune.l1_unstructured(model[1], "weight", 0.5)
    frozen = model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(fl.train_only(model, {"1.weight_orig": fl.everything}).parameters(), lr=1.0)
    before = model[1].weight_orig.detach().clone()
    model[1](model[0](torch.tensor([1, 2]))).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model[1].weight_orig, before)
    assert torch.equal(model[0].weight, frozen)
