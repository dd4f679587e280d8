"""Train and save a chain of files, or apply one, in one process or in several, plain, under DDP or under FSDP2.

Run by test_processes.py: chain_processes.py save|apply WRAP FOLDER; prints the digests that the first process sees.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import frostline as fl

STEPS = 3


class Net(nn.Module):
    """A tied model with odd sizes, a buffer, and a parameter with a single row."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.middle, self.head = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 11, bias=False)
        self.scale = nn.Parameter(torch.randn(1, 6))
        self.norm = nn.BatchNorm1d(6)
        self.head.weight = self.embed.weight
        self.bfloat16()

    def forward(self, ids):
        """Return the logits of ids (n,)."""
        return self.head(self.norm(self.middle(self.embed(ids)) * self.scale))


def main(what, wrap, folder):
    """Do it."""
    several = "RANK" in os.environ
    if several:
        dist.init_process_group("gloo")
    model = Net()
    if wrap == "partial":
        fl.train_only(model, {"*": fl.everything, "embed.weight": fl.rows([2, 3, 7])})
    first = not several or dist.get_rank() == 0
    unsharded = fl.digest(model)
    if wrap in ("fsdp", "partial"):
        fully_shard(model.middle)
        fully_shard(model)
    elif wrap == "hsdp":
        mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("replicate", "shard"))
        fully_shard(model, mesh=mesh)
    elif wrap == "tensor":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        parallelize_module(model.middle, mesh, ColwiseParallel(output_layouts=Replicate()))
    wrapped = DistributedDataParallel(model) if wrap == "ddp" else model
    digests = [fl.digest(wrapped)]
    assert digests == [unsharded]
    if what == "save":
        if first:
            save_file({k: v for k, v in Net().state_dict().items() if k != "head.weight"}, folder / "base.safetensors")
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
        changes = fl.Changes(wrapped)
        for step in range(STEPS):
            optimizer.zero_grad()
            ids = torch.tensor([[1, 2, 3], [7, 8, 0]][dist.get_rank() % 2 if several else 0])
            wrapped(ids).float().square().sum().backward()
            optimizer.step()
            changes.save(folder / f"step-{step}.safetensors")
            digests.append(changes.digest)
            if several:
                dist.barrier()
    else:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for step in range(STEPS):
            fl.apply_changes(wrapped, folder / f"step-{step}.safetensors")
            digests.append(fl.digest(wrapped))
        optimizer.step()
        try:
            fl.apply_changes(wrapped, folder / "step-1.safetensors")
        except fl.CheckpointError:
            assert fl.digest(wrapped) == digests[-1]
        else:
            raise AssertionError("a file was applied to a state that it does not build on")
    if first:
        print(*digests)
    if several:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
