"""Three steps in each process, under DDP and FSDP2, with and without `trial_step` and `explain` between them.

Writes a JSON file for each process: the losses and what the last trial step reported.

torchrun --nproc-per-node 2 look_sharded.py FOLDER
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import frostline as fl

IDS = torch.arange(10)


def run(way, look):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 5), nn.Linear(5, 1))
    learns = {"0.weight": fl.rows([8, 3, 4]), "1.weight": fl.entries(torch.eye(5, 4) > 0), "2.*": fl.everything}
    plan = fl.train_only(model, learns)
    if way == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
        parameters = plan.parameters()
    else:
        for layer in model:
            fully_shard(layer)
        fully_shard(model)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    half = IDS.chunk(2)[dist.get_rank()]

    def loss_fn():
        return (model(half) - 1).square().mean()

    losses, seen = [], {}
    for _ in range(3):
        if look:
            trial = fl.trial_step(model, loss_fn, optimizer)
            seen = {
                name: [changes.entries_moved, changes.entries, changes.rows.tolist()]
                for name, changes in trial.tensors.items()
            }
            explanation = fl.explain(model, loss_fn, optimizer)
            assert not explanation.alarms, str(explanation)
        loss = loss_fn()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return {"losses": losses, "seen": seen}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    found = {f"{way} {look}": run(way, look) for way in ("ddp", "fsdp") for look in (False, True)}
    path = Path(sys.argv[1]) / f"{dist.get_rank()}.json"
    path.write_text(json.dumps(found))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # past an abort of torch's own at exit
