"""Trains partial tensors on the CPU and on the device of elsewhere.cpp: `core_elsewhere.py LIBRARY OUT`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tagger"))
from train_elsewhere import refused, use_library

import frostline as fl


def model_on(device: str) -> tuple[nn.Sequential, Tensor]:
    """The same model and ids on any device."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(12, 4), nn.Linear(4, 3))
    return model.to(device), torch.tensor([[1, 2, 3], [3, 8, 11]]).to(device)


def run(device: str, learns: dict[str, Any], make: Callable[..., Any]) -> dict[str, Any]:
    """Five steps; what moved of the first tensor, and every value afterwards."""
    model, ids = model_on(device)
    before = {name: value.cpu().clone() for name, value in model.state_dict().items()}
    plan = fl.train_only(model, learns)
    optimizer = make(plan.parameters())

    def loss_fn() -> Tensor:
        return fl.scale_gradient(model(ids), 0.5).square().mean()

    for step in range(5):
        if step == 2:
            fl.gradients(loss_fn, [model[0]])
            fl.trial_step(model, loss_fn, optimizer)
            alarms = fl.explain(model, loss_fn, optimizer).alarms
        optimizer.zero_grad()
        loss_fn().backward()
        optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        fl.save_learned(model, Path(folder) / "learned.safetensors")
        fl.load_learned(model, Path(folder) / "learned.safetensors")
    on = {parameter.device.type for parameter in model.parameters()}
    digest = fl.digest(model)
    fl.merge(model)
    after = {name: value.cpu() for name, value in model.state_dict().items()}
    moved = {name: (after[name] != before[name]).nonzero().tolist() for name in after}
    values = {name: value.tolist() for name, value in after.items()}
    same = digest == fl.digest(model)
    return {"moved": moved, "values": values, "devices": sorted(on), "alarms": len(alarms), "digest kept": same}


MASK = torch.arange(12).reshape(3, 4) % 5 == 0
RUNS: dict[str, Callable[[str], dict[str, Any]]] = {
    "rows": lambda device: run(
        device, {"0.weight": fl.rows([3, 8]), "1.*": fl.everything}, lambda p: torch.optim.AdamW(p, lr=0.1)
    ),
    "rows chosen there": lambda device: run(
        device,
        {"0.weight": fl.rows(torch.tensor([8, 3]).to(device))},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    ),
    "entries": lambda device: run(
        device, {"1.weight": fl.entries(MASK.to(device))}, lambda p: torch.optim.AdamW(p, lr=0.1)
    ),
}

if __name__ == "__main__":
    use_library(sys.argv[1])
    found: dict[str, Any] = {name: {d: make(d) for d in ("cpu", "elsewhere")} for name, make in RUNS.items()}
    model, ids = model_on("elsewhere")
    fl.train_only(model, {"0.weight": fl.rows([1])})
    found["mixes"] = not refused(lambda: model[0].weight + torch.ones(12, 4))
    (Path(sys.argv[2]) / "core.json").write_text(json.dumps(found), encoding="utf-8")
    os._exit(0)  # torch ends the threads of such a device badly
