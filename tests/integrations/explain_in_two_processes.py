"""Two processes under DDP: each uses an expert of its own, and one has forgotten a layer in its optimizer."""

import gc

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import frostline as fl
from frostline.integrations.trainer_steps import TrainerSteps


class Network(nn.Module):
    def __init__(self, rank):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.late, self.head, self.rank = nn.Linear(4, 4), nn.Linear(4, 1), rank

    def forward(self, x):
        return self.head(self.late(self.experts[self.rank](x)))


def take_a_step(rank):
    torch.manual_seed(0)
    model = DistributedDataParallel(Network(rank), find_unused_parameters=True)
    held = [p for name, p in model.module.named_parameters() if not (rank and name.startswith("late"))]
    optimizer = torch.optim.SGD(held, lr=0.1)
    watched = TrainerSteps(steps=1, fail=True)
    watched.begin(0, model, optimizer)
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    try:
        watched.end(1, is_first=rank == 0)
    except fl.ProbeError:
        print(f"rank {rank} raised: {watched.explanation.alarms}", flush=True)


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    take_a_step(torch.distributed.get_rank())
    gc.collect()  # DDP's own threads must be gone before Python ends: one that then asks for the interpreter aborts
    torch.distributed.destroy_process_group()
