"""Train a tiny tied Llama of which three rows learn: the script that test_processes.py starts.

    python train_llama.py FOLDER                                    one process, the whole batch
    python -m torch.distributed.run ... train_llama.py FOLDER       DDP, then FSDP2; each process its share of the batch

Each process writes what it saw to FOLDER: NAME.RANK.safetensors (losses, table, learned rows) and NAME.RANK.json.
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
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

import frostline as fl

# Odd numbers, so that two processes get unequal shards of the table and of the learned rows.
V, ROWS, STEPS, SENTENCES = 121, [7, 119, 3], 6, 4
TABLE, NORM = "model.embed_tokens.weight", "model.norm.weight"


def make_model() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=V, **sizes, max_position_embeddings=32, tie_word_embeddings=True))


def choose(model: nn.Module) -> fl.Plan:
    return fl.train_only(model, {TABLE: fl.rows(ROWS), NORM: fl.everything})


def batches(rank: int, processes: int) -> list[Tensor]:
    """This process's share of every batch; all batches hold learned ids, other ids and repeated ids."""
    ids = torch.randint(V, (STEPS, SENTENCES, 10), generator=torch.Generator().manual_seed(1))
    ids[:, :, 2:6] = torch.tensor([7, 119, 3, 7])
    return [batch.chunk(processes)[rank] for batch in ids]


def train(model: nn.Module, plan: fl.Plan, rank: int, processes: int) -> Tensor:
    """The loss of every step over the whole batch, shape (STEPS,)."""
    optimizer = torch.optim.AdamW(plan.parameters(), lr=0.02, weight_decay=0.1)
    losses = []
    for ids in batches(rank, processes):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().clone())
        if processes > 1:
            dist.all_reduce(losses[-1])
    return torch.stack(losses) / processes


def whole(tensor: Any) -> Tensor:
    """The tensor with all its shards."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def refusal(call: Callable[[], object]) -> str:
    """The message of the PartialTensorError that `call` must raise; empty if it raises none."""
    try:
        call()
    except fl.PartialTensorError as error:
        return str(error)
    return ""


def write(folder: Path, name: str, rank: int, model: Any, losses: Tensor, about: dict[str, Any]) -> None:
    parameters = dict(model.named_parameters())
    tensors = {key: whole(parameters[key]) for key in (TABLE, f"{TABLE}_learned", NORM)}
    others = [whole(value).flatten() for key, value in parameters.items() if key not in tensors]
    save_file(tensors | {"losses": losses, "others": torch.cat(others)}, folder / f"{name}.{rank}.safetensors")
    (folder / f"{name}.{rank}.json").write_text(json.dumps(about))


def run_one(folder: Path) -> None:
    model = make_model()
    write(folder, "one", 0, model, train(model, choose(model), 0, 1), {"keys": list(model.state_dict())})


def run_ddp(folder: Path, rank: int, processes: int) -> None:
    model = make_model()
    plan = choose(model)
    wrapped = DistributedDataParallel(model)
    losses = train(wrapped, plan, rank, processes)
    about = {"keys": list(model.state_dict()), "again": refusal(lambda: fl.train_only(wrapped, {"*": fl.everything}))}
    write(folder, "ddp", rank, model, losses, about)


def run_fsdp(folder: Path, rank: int, processes: int) -> None:
    model = make_model()
    plan = choose(model)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    losses = train(model, plan, rank, processes)
    about = {
        "local_rows": dict(model.named_parameters())[f"{TABLE}_learned"].to_local().shape[0],
        "again": refusal(lambda: fl.train_only(model, {TABLE: fl.rows(ROWS)})),
        "merge": refusal(lambda: fl.merge(model)),
        "keys": list(model.state_dict()),
    }
    write(folder, "fsdp", rank, model, losses, about)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    if "RANK" not in os.environ:
        return run_one(folder)
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    run_ddp(folder, rank, processes)
    run_fsdp(folder, rank, processes)
    dist.barrier()
    # Not through the interpreter's end: there torch's gloo threads sometimes abort a process whose work is done.
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
