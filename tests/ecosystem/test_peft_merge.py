"""`merge_and_unload` of a LoRA over a Linear of which rows or entries learn: as in plain torch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl

peft = pytest.importorskip("peft")


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 5).to(dtype), nn.Linear(5, 3).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).tanh())


@pytest.mark.parametrize("no_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("choice", [fl.rows([3, 0]), fl.entries(torch.eye(5, 6).bool())], ids=["rows", "entries"])
def test_an_adapter_is_merged_into_frozen_and_learned_values(choice: Any, dtype: torch.dtype, no_grad: bool) -> None:
    model = peft.get_peft_model(Net(dtype), peft.LoraConfig(r=2, target_modules=["first"]))
    plan = fl.train_only(model, {"*lora_*": fl.everything, "*first.base_layer.weight": choice})
    optimizer = torch.optim.AdamW(plan.parameters(), lr=0.1)
    x = torch.randn(4, 6, dtype=dtype)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).pow(2).sum().backward()
        optimizer.step()
    plain = copy.deepcopy(model)
    fl.merge(plain)
    expected = plain.merge_and_unload()
    trained = model.base_model.model.first.base_layer.weight.detach().clone()
    with torch.set_grad_enabled(not no_grad):
        merged = model.merge_and_unload()
    assert torch.equal(merged.first.weight.detach(), expected.first.weight)
    assert (merged.first.weight.detach() != trained).all(dim=1).all()  # frozen rows get the adapter's part too
    assert torch.equal(merged.second.weight, Net(dtype).second.weight)
    torch.testing.assert_close(merged(x), expected(x), rtol=1e-6, atol=1e-6)
