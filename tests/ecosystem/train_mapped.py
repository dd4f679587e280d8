"""Run by test_mapped_processes.py, plainly or under torchrun: DDP over a table that all map from the same file."""

import os
import sys

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import frostline as fl


def main(table: str, out: str) -> None:
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    else:  # not under torchrun: the only process
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = nn.Sequential(fl.mapped_embedding(table), nn.Linear(6, 3))
    start = model[0].weight.clone()
    plan = fl.train_only(model, {"*": fl.everything, "0.weight": fl.rows([3, 9])})
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(plan.parameters(), lr=0.1, weight_decay=0.1)
    ids = torch.arange(24).remainder(12).view(2, 12)
    for _ in range(5):
        optimizer.zero_grad()
        wrapped(ids[rank::size]).pow(2).mean().backward()
        optimizer.step()
    end = model[0].weight.detach().clone()
    save_file({"start": start, "end": end, "head": model[1].weight.detach()}, f"{out}/rank{rank}.safetensors")
    dist.barrier()
    os._exit(0)  # on a busy machine torch 2.13 with gloo aborts about every fourth ordinary exit, frostline or not


if __name__ == "__main__":
    main(*sys.argv[1:])
