"""Train under DDP and FSDP2, with and without looking at gradients: from one process under DDP, from all under FSDP2.

Started by test_ddp.py, in one process or by torchrun in two. Writes a JSON file for each process: whether both ways
have the same losses and state.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import frostline as fl

OPTIONS: dict[str, dict[str, bool] | None] = {
    "plain": {},
    "find unused": {"find_unused_parameters": True},
    "static graph": {"static_graph": True},
    "views": {"gradient_as_bucket_view": True},
}


def train(options: dict[str, bool], looks: bool) -> tuple[list[float], dict[str, Tensor], list[Tensor]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    fl.train_only(net, {"*": fl.everything, "0.weight": fl.rows([1, 5, 7])})
    model = DistributedDataParallel(net, **options)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.05)
    torch.manual_seed(dist.get_rank())
    losses, seen = [], []

    def look() -> None:
        if looks and dist.get_rank() == 0:
            for _ in range(2):
                seen.append(fl.gradients(lambda: loss_of(torch.arange(6)), [net[0].weight, net[1]])[0])

    def loss_of(words: Tensor) -> Tensor:
        return model(words).square().mean()

    for _ in range(5):
        words = torch.randint(9, (6,))
        look()
        optimizer.zero_grad()
        loss = loss_of(words)
        look()
        loss.backward()
        look()
        optimizer.step()
        losses.append(loss.item())
    return losses, net.state_dict(), seen


def train_sharded(looks: bool) -> tuple[list[float], dict[str, Tensor], list[Tensor]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    for layer in (net[1], net[4], net):
        fully_shard(layer)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05)
    losses, seen = [], []

    def look() -> None:
        for _ in range(2 if looks else 0):
            seen.extend(fl.gradients(lambda: net(torch.arange(6)).square().mean(), [net[1]]))

    if looks:
        with pytest.raises(TypeError, match=r"sharded over processes\. Pass a module"):
            fl.gradients(lambda: net(torch.arange(6)).mean(), [net[1].weight])
    for _ in range(5):
        look()
        optimizer.zero_grad()
        loss = net(torch.randint(9, (6,))).square().mean()
        look()
        loss.backward()
        look()
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: tensor.full_tensor() for name, tensor in net.named_parameters()}, seen


def main() -> None:
    signal.alarm(100)  # ends a process that waits for another for ever
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    else:  # not under torchrun: the only process
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    found: dict[str, dict[str, object]] = {}
    for name, options in (OPTIONS | {"sharded": None}).items():
        plain, state, _ = train_sharded(looks=False) if options is None else train(options, looks=False)
        looked, same_state, seen = train_sharded(looks=True) if options is None else train(options, looks=True)
        found[name] = {
            "same losses": plain == looked,
            "same state": all(torch.equal(state[key], same_state[key]) for key in state),
            "moved": len(set(plain)) == len(plain),
            "looks": sum(bool((gradient != 0).any()) for gradient in seen),
        }
    Path(sys.argv[1], f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # on a busy machine torch 2.13 with gloo aborts some ordinary exits, frostline or not


if __name__ == "__main__":
    main()
