"""Adversarial training of a model on two processes, each with half of a batch; run by test_ddp.py."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import frostline as fl

IDS, LABELS = torch.arange(24).view(8, 3) % 6, torch.arange(8) % 2


def trained(rank: int, size: int, together: bool) -> list[Tensor]:
    """Return the parameters after three steps of adversarial training on a batch that `size` processes share."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 2))
    fl.train_only(plain, {"*": fl.everything, "0.weight": fl.rows([1, 3])})
    model = DistributedDataParallel(plain) if together else plain
    ids, labels = IDS[rank::size], LABELS[rank::size]
    optimizer = torch.optim.SGD([p for p in plain.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        for part in torch.arange(len(ids)).split(2 if together else 4):
            loss = fl.adversarial.loss(lambda part=part: cross_entropy(model(ids[part]), labels[part]), plain[0],
                                       epsilon=0.5, kind="pgd", steps=2)  # fmt: skip
            loss.backward()  # two parts: gradients add up
        optimizer.step()
    return [parameter.detach().clone() for parameter in plain.parameters()]


if __name__ == "__main__":
    dist.init_process_group("gloo")
    found = trained(dist.get_rank(), dist.get_world_size(), together=True)
    order = torch.cat([torch.arange(8)[rank::2][part] for part in torch.arange(4).split(2) for rank in (0, 1)])
    IDS, LABELS = IDS[order], LABELS[order]
    expected = trained(0, 1, together=False)
    same = all(torch.allclose(mine, other, atol=1e-6) for mine, other in zip(found, expected, strict=True))
    torch.manual_seed(0)
    if dist.get_rank() == 0:
        print("same" if same else "different", "moved" if (found[0] != nn.Embedding(6, 4).weight).any() else "still")
    dist.destroy_process_group()
    sys.exit(0)
