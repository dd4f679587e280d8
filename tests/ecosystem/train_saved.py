"""Save and resume the tiny Llama of train_llama.py across numbers of processes: the script that test_saved.py starts.

    python train_saved.py FOLDER one          one process: train, save halfway, go on
    python -m torch.distributed.run ...       2 x FOLDER two: the same under FSDP2, and resume from what `one` saved
                                              3 x FOLDER three: load what `one` saved, save it again
    python train_saved.py FOLDER back         one process: resume from all of them

Every run that reached the end writes END.RANK.safetensors: its last losses and its learned rows.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from train_llama import NORM, ROWS, TABLE, batches, choose, make_model, whole

import frostline as fl

HALFWAY = 3
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
FROM_FIRST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def rank_and_processes() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def start(choose: Callable[[nn.Module], fl.Plan] = choose, learned: Path | None = None) -> tuple[Any, Any]:
    """A model that has learned nothing (or what a file says), sharded where there are processes; its optimizer."""
    model = make_model()
    plan = choose(model)
    if learned is not None:
        fl.load_learned(model, learned)
    if dist.is_initialized():
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    return model, torch.optim.AdamW(plan.parameters(), lr=0.02, weight_decay=0.1)


def train(model: Any, optimizer: Any, steps: slice) -> Tensor:
    """The losses of these steps; one process adds up the shares of two, in the same shapes."""
    rank, processes = rank_and_processes()
    shares = zip(*([batches(0, 2), batches(1, 2)] if processes == 1 else [batches(rank, 2)]), strict=True)
    losses = []
    for share in list(shares)[steps]:
        optimizer.zero_grad()
        total = torch.zeros(())
        for ids in share:
            loss = model(input_ids=ids, labels=ids).loss / len(share)
            loss.backward()
            total += loss.detach()
        optimizer.step()
        losses.append(total)
    stacked = torch.stack(losses)
    if processes > 1:
        dist.all_reduce(stacked)
    return stacked / processes


def finish(folder: Path, name: str, model: Any, optimizer: Any) -> None:
    losses = train(model, optimizer, slice(HALFWAY, None))
    values = {key: whole(value) for key, value in model.state_dict().items()}
    learned = whole(dict(model.named_parameters())[f"{TABLE}_learned"])
    save_file(
        {"losses": losses, "learned": learned, "table": values[TABLE], "norm": values[NORM]},
        folder / f"{name}.{rank_and_processes()[0]}.safetensors",
    )


def save(folder: Path, name: str, model: Any, optimizer: Any) -> None:
    state = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.save(state, checkpoint_id=folder / name)
    fl.save_learned(model, folder / f"{name}.learned.safetensors")


def resume(folder: Path, name: str) -> tuple[Any, Any]:
    """As torch's documentation does it: read into the state of a new model, then load it."""
    model, optimizer = start()
    state = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.load(state, checkpoint_id=folder / name)
    model.load_state_dict(state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    return model, optimizer


def save_kinds(folder: Path, name: str) -> None:
    """What learns of every kind, saved: one process and two must write the same file."""
    odd = torch.arange(48 * 32).view(48, 32) % 5 == 0
    gate = "model.layers.1.mlp.gate_proj.weight"
    kinds: dict[str, Any] = {
        "rows": {TABLE: fl.rows(ROWS, dtype=torch.float64)},
        "one row": {TABLE: fl.rows([120])},
        "entries": {gate: fl.entries(odd)},
        "everything": {"*": fl.everything, gate: fl.entries(odd), TABLE: fl.rows(ROWS)},
    }
    for kind, selections in kinds.items():
        model, optimizer = start(lambda model, selections=selections: fl.train_only(model, selections))
        train(model, optimizer, slice(2))
        fl.save_learned(model, folder / f"{kind}.{name}.safetensors")


def one_process(folder: Path) -> None:
    model, optimizer = start()
    train(model, optimizer, slice(HALFWAY))
    save(folder, "one", model, optimizer)
    save_file({key: value.clone() for key, value in model.state_dict().items()}, folder / "one.full.safetensors")
    finish(folder, "uninterrupted in one", model, optimizer)
    save_kinds(folder, "one")


def two_processes(folder: Path) -> None:
    model, optimizer = start()
    train(model, optimizer, slice(HALFWAY))
    save(folder, "two", model, optimizer)
    full, state = get_model_state_dict(model, options=FULL), get_optimizer_state_dict(model, optimizer, options=FULL)
    if dist.get_rank() == 0:
        save_file({key: value.clone() for key, value in full.items()}, folder / "two.full.safetensors")
        for moments in state["state"].values():
            moments["step"] = moments["step"].clone()  # torch hands out the optimizer's own
    finish(folder, "uninterrupted in two", model, optimizer)

    finish(folder, "from two to two", *resume(folder, "two"))
    finish(folder, "from one to two", *resume(folder, "one"))

    model, optimizer = start()
    set_model_state_dict(model, full, options=FROM_FIRST)
    set_optimizer_state_dict(model, optimizer, state, options=FROM_FIRST)
    finish(folder, "from full to two", model, optimizer)

    # Back in time: the state_dict that was saved still shares the model's memory.
    model, optimizer = resume(folder, "two")
    state = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}
    train(model, optimizer, slice(HALFWAY, None))
    dcp.load(state, checkpoint_id=folder / "two")
    model.load_state_dict(state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    finish(folder, "back in time in two", model, optimizer)

    model, _ = start(learned=folder / "one.learned.safetensors")
    fl.save_learned(model, folder / "again.learned.safetensors")
    save_kinds(folder, "two")
    (folder / f"failed.{dist.get_rank()}.txt").write_text(failed(model, folder / "nowhere" / "learned.safetensors"))
    (folder / f"loaded.{dist.get_rank()}.txt").write_text(failed(model, folder / "two.learned.safetensors", load=True))


def failed(model: nn.Module, path: Path, load: bool = False) -> str:
    try:
        (fl.load_learned if load else fl.save_learned)(model, path)
    except fl.LearnedFileError as error:
        return str(error)
    return ""


def three_processes(folder: Path) -> None:
    save(folder, "three", *resume(folder, "one"))


def resume_in_one(folder: Path) -> None:
    for name in ("one", "two", "three"):
        finish(folder, f"from {name} to one", *resume(folder, name))


def main(folder: Path, stage: str) -> None:
    torch.set_num_threads(1)
    stages = {"one": one_process, "two": two_processes, "three": three_processes, "back": resume_in_one}
    if "RANK" not in os.environ:
        return stages[stage](folder)
    dist.init_process_group("gloo")
    stages[stage](folder)
    dist.barrier()
    os._exit(0)  # on a busy machine torch 2.13 with gloo aborts about every fourth ordinary exit, frostline or not


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
