"""Two processes with a small model: what DDP alone can do, and what is refused. The script that test_small.py starts.

    python train_small.py FOLDER                                    one process, which adds up both processes' shares
    python -m torch.distributed.run ... train_small.py FOLDER       two processes

Each process writes NAME.RANK.safetensors (losses, table, head) and, of two, refusals.RANK.json to FOLDER.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import frostline as fl

V, ROWS, STEPS = 20, [3, 17, 5], 4
OPTIMIZERS: dict[str, Any] = {
    "SGD": torch.optim.SGD,
    "SparseAdam": torch.optim.SparseAdam,
    "RowAdamW": fl.optim.RowAdamW,
    "RowSGD": fl.optim.RowSGD,
    "RowAdagrad": fl.optim.RowAdagrad,
}


class Model(nn.Module):
    """A table, a head, and a side branch that some batches leave out."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(V, 4, sparse=sparse)
        self.head = nn.Linear(4, 3)
        self.side = nn.Linear(4, 3)

    def forward(self, ids: Tensor, side: bool = False) -> Tensor:
        found = self.table(ids)
        return (self.head(found) + self.side(found) if side else self.head(found)).pow(2).mean()


class Kinds(nn.Module):
    """A module of every kind that keeps its weights in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(11, 4)
        self.recurrent = nn.LSTM(4, 6, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.convolution = nn.Conv1d(12, 5, 3)
        self.norm = nn.BatchNorm1d(5)

    def forward(self, ids: Tensor) -> Tensor:
        found, _ = self.recurrent(self.table(ids))
        found, _ = self.attention(found, found, found)
        value: Tensor = self.norm(self.convolution(found.mT)).pow(2).mean()
        return value


def kinds_ids() -> Tensor:
    """(2 processes, sentences, ids)"""
    return torch.randint(11, (2, 2, 8), generator=torch.Generator().manual_seed(0))


def train_kinds(folder: Path, name: str, wrap: Callable[[nn.Module], Any], shares: list[Tensor]) -> None:
    model = Kinds()
    learns = {
        "table.weight": fl.rows([3, 5]),
        "recurrent.weight_ih_l0": fl.rows([1, 7, 20]),
        "recurrent.bias_hh_l0_reverse": fl.rows([2]),
        "recurrent.weight_hh_l0": fl.everything,
        "attention.in_proj_weight": fl.entries(torch.arange(36 * 12).view(36, 12) % 3 == 0),
        "convolution.weight": fl.rows([1, 4]),
        "convolution.bias": fl.rows([0]),
    }
    plan = fl.train_only(model, learns, freeze_running_stats=True)
    wrapped = wrap(model)
    optimizer = torch.optim.AdamW(plan.parameters(), lr=0.02, weight_decay=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        for ids in shares:
            (wrapped(ids) / len(shares)).backward()
        optimizer.step()
    state: dict[str, Any] = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    whole = {key: value.full_tensor() if hasattr(value, "full_tensor") else value for key, value in state.items()}
    save_file({key: value.clone() for key, value in whole.items()}, folder / name)


def fewer_rows_than_processes() -> dict[str, Any]:
    """A table of one row: the second process holds nothing of it. What was learned, saved into, and loaded again."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(1, 4), nn.Linear(4, 2))
    start = model[0].weight.detach().clone()
    plan = fl.train_only(model, {"0.weight": fl.rows([0])})
    fully_shard(model)
    optimizer = torch.optim.SGD(plan.parameters(), lr=0.1)
    model(torch.tensor([0])).sum().backward()
    optimizer.step()
    learned: Any = model[0].weight_learned
    values, state = learned.full_tensor().detach(), model.state_dict()
    saved = state["0.weight"].full_tensor()
    with torch.no_grad():
        state["0.weight"].to_local().mul_(2)  # as dcp.load would
    model.load_state_dict(state)
    loaded = learned.full_tensor()
    moved = not torch.equal(values, start)
    return {"short": [moved, torch.equal(saved, values), torch.equal(loaded, 2 * values)]}


def own_order() -> list[int]:
    return ROWS if dist.get_rank() == 0 else ROWS[::-1]


def make(sparse: bool = False, side: bool = False, rows: list[int] = ROWS) -> Model:
    model = Model(sparse)
    learns = {"table.weight": fl.rows(rows), "head.*": fl.everything, "side.*": fl.everything if side else fl.nothing}
    fl.train_only(model, learns)
    return model


def batches() -> Tensor:
    """(STEPS, 2 processes, ids): learned, frozen and repeated ids; not every learned id in every share."""
    ids = torch.randint(V, (STEPS, 2, 6), generator=torch.Generator().manual_seed(1))
    ids[:, 0, :3] = torch.tensor([3, 17, 3])
    ids[:, 1, :2] = torch.tensor([5, 3])
    return ids


def train(
    model: Any,
    optimizer: Any,
    shares: Callable[[int], list[Tensor]],
    side: bool = False,
) -> tuple[Tensor, bool]:
    """The losses, and whether the table's gradient was sparse."""
    learned = next(value for name, value in model.named_parameters() if name.endswith("weight_learned"))
    rest = [value for value in model.parameters() if value.requires_grad and value is not learned]
    optimizers = [optimizer([learned], lr=0.1), torch.optim.SGD(rest, lr=0.1)]
    losses = []
    for step in range(STEPS):
        for each in optimizers:
            each.zero_grad()
        total = torch.zeros(())
        for ids in shares(step):
            loss = model(ids, side=side and step % 2 == 0) / len(shares(step))
            loss.backward()
            total += loss.detach()
        fl.clip_grad_norm_(model.parameters(), 100.0)
        for each in optimizers:
            each.step()
        losses.append(total)
    return torch.stack(losses), learned.grad is not None and learned.grad.is_sparse


def write(folder: Path, name: str, rank: int, model: Any, losses: Tensor, sparse: bool) -> None:
    tensors = {"losses": losses, "table": model.table.weight.detach().clone(), "sparse": torch.tensor([sparse])}
    tensors |= {"head": model.head.weight.detach(), "side": model.side.weight.detach()}
    save_file(tensors, folder / f"{name}.{rank}.safetensors")


def one_process(folder: Path) -> None:
    ids = batches()
    for name, optimizer in OPTIMIZERS.items():
        model = make(sparse=True)
        write(folder, f"one, {name}", 0, model, *train(model, optimizer, lambda step: list(ids[step])))
    model = make(side=True)
    write(folder, "one, side", 0, model, *train(model, torch.optim.AdamW, lambda step: list(ids[step]), side=True))
    model = make()
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    for step, shares in enumerate(ids):
        optimizer.zero_grad()
        for share in shares if step < 2 else shares[1:]:
            (model(share) / 2).backward()
        optimizer.step()
    write(folder, "one, uneven", 0, model, torch.zeros(1), False)
    train_kinds(folder, "kinds.one", lambda model: model, list(kinds_ids()))


def two_processes(folder: Path) -> None:
    rank, ids = dist.get_rank(), batches()

    def run(name: str, model: Any, wrapped: Any, optimizer: Any, side: bool = False) -> None:
        losses, sparse = train(wrapped, optimizer, lambda step: [ids[step, rank]], side)
        dist.all_reduce(losses)
        write(folder, name, rank, model, losses / 2, sparse)

    for name, optimizer in OPTIMIZERS.items():
        model = make(sparse=True)
        run(f"ddp, {name}", model, DistributedDataParallel(model), optimizer)
    model = make(side=True)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    run("ddp, side", model, wrapped, torch.optim.AdamW, side=True)
    uneven(folder, rank)
    train_kinds(folder, f"kinds.ddp.{rank}", DistributedDataParallel, [kinds_ids()[rank]])
    train_kinds(folder, f"kinds.fsdp.{rank}", fully_shard, [kinds_ids()[rank]])
    (folder / f"refusals.{rank}.json").write_text(json.dumps(refusals() | traffic() | fewer_rows_than_processes()))


def uneven(folder: Path, rank: int) -> None:
    """The second process has two batches more than the first."""
    model = make()
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    with wrapped.join():
        for ids in batches()[: 2 + 2 * rank, rank]:
            optimizer.zero_grad()
            wrapped(ids).backward()
            optimizer.step()
    write(folder, "ddp, uneven", rank, model, torch.zeros(1), False)


def traffic() -> dict[str, Any]:
    """How many values the hook of DDP gets in one step, and how many buffers have the size of the table."""
    model, sent = make(), []
    wrapped = DistributedDataParallel(model)

    def count(state, bucket):  # without annotations, which DDP would want to be classes
        sent.append(bucket.buffer().numel())
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    wrapped.register_comm_hook(None, count)
    wrapped(batches()[0, 0]).backward()
    return {"sent": sum(sent), "buffers": [name for name, _ in model.named_buffers()]}


def refusals() -> dict[str, str]:
    cpu = torch.device("cpu")

    def sharded(model: nn.Module) -> nn.Module:
        return fully_shard(model)

    def flattened() -> None:
        FullyShardedDataParallel(make(), use_orig_params=True, device_id=cpu)

    calls: dict[str, Callable[[], object]] = {
        "sparse": lambda: sharded(make(sparse=True))(batches()[0, 0]),
        "flattened": flattened,
        "plan of flattened": lambda: make_plan(
            FullyShardedDataParallel(Model(False), use_orig_params=True, device_id=cpu)
        ),
        "row optimizer": lambda: fl.optim.RowAdamW(sharded(make()).parameters()),
        "early optimizer": early_optimizer,
        "state of the wrapper": lambda: load_state(DistributedDataParallel(make())),
        "state of the model": lambda: load_state(DistributedDataParallel(make()).module),
        "another order, ddp": lambda: DistributedDataParallel(make(rows=own_order()))(batches()[0, 0]),
        "another order, fsdp": lambda: sharded(make(rows=own_order()))(batches()[0, 0]),
        "later plan, ddp": later_plan,
        "merge": lambda: fl.merge(sharded(make())),
        "plan of sharded": lambda: make_plan(sharded(make())),
    }
    return {name: error_of(call) for name, call in calls.items()}


def load_state(model: nn.Module) -> None:
    state = get_model_state_dict(model)
    set_model_state_dict(model, {name: value.clone() for name, value in state.items()})


def early_optimizer() -> None:
    model = make()
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    fully_shard(model)(batches()[0, 0]).backward()
    optimizer.step()


def later_plan() -> None:
    model = make()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    wrapped(batches()[0, 0]).backward()
    fl.train_only(model, {"table.weight": fl.rows(ROWS[:2])})
    wrapped(batches()[0, 0])


def make_plan(model: nn.Module) -> None:
    fl.train_only(model, {"*": fl.everything})


def error_of(call: Callable[[], object]) -> str:
    """Return the class and the message of the error that `call` raises; empty if there is none."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    if "RANK" not in os.environ:
        return one_process(folder)
    dist.init_process_group("gloo")
    two_processes(folder)
    dist.barrier()
    os._exit(0)  # on a busy machine torch 2.13 with gloo aborts about every fourth ordinary exit, frostline or not


if __name__ == "__main__":
    main(Path(sys.argv[1]))
