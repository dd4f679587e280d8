"""Train the tiny Llama of train_llama.py in every way that two processes can: the script that test_ways.py starts.

    python train_ways.py FOLDER                                    one process, which adds up both processes' shares
    python -m torch.distributed.run ... train_ways.py FOLDER       two processes, one way after the other

The one process does what the two do together, in the same order and shapes, so the same bits are expected of all.
Each writes NAME.RANK.safetensors (losses, table, learned rows, everything else) and NAME.RANK.json to FOLDER.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from train_llama import ROWS, TABLE, batches, choose, make_model, write

import frostline as fl

Clip = Callable[[list[nn.Parameter]], Any]
MIXED = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def make_half() -> Any:
    """A bfloat16 model, of which rows learn in float32."""
    return make_model().to(torch.bfloat16)


def choose_half(model: nn.Module) -> fl.Plan:
    return fl.train_only(model, {TABLE: fl.rows(ROWS, dtype=torch.float32)})


def clip(parameters: list[nn.Parameter]) -> Tensor:
    norm = fl.clip_grad_norm_(parameters, max_norm=0.1)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def shard(model: Any, **options: Any) -> Any:
    for layer in model.model.layers:
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def train(
    model: Any,
    plan: fl.Plan,
    shares: list[list[Tensor]],
    clip: Clip | None = None,
    optimizer: Any = torch.optim.AdamW,
    around: Callable[[Any, bool], AbstractContextManager[Any]] = lambda model, last: nullcontext(),
) -> tuple[Tensor, list[float]]:
    """Each step: the gradients of its shares of the batch, added up; (loss of every step, norms before clipping)."""
    optimizer = optimizer(plan.parameters(), lr=0.02, weight_decay=0.1)
    losses, norms = [], []
    for share in shares:
        optimizer.zero_grad()
        total = torch.zeros(())
        for index, ids in enumerate(share):
            with around(model, index == len(share) - 1):
                loss = model(input_ids=ids, labels=ids).loss / len(share)
                loss.backward()
            total = total + loss.detach().float()
        if clip is not None:
            norms.append(float(clip(plan.parameters())))
        optimizer.step()
        losses.append(total)
    return torch.stack(losses), norms


def one_process(folder: Path) -> None:
    shares = [list(ids) for ids in zip(batches(0, 2), batches(1, 2), strict=True)]
    runs: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "plain": (make_model, choose, {}),
        "by rows": (make_model, choose, {"optimizer": fl.optim.RowAdamW}),
        "clipped": (make_model, choose, {"clip": clip}),
        "half": (make_half, choose_half, {}),
    }
    for name, (make, plan_of, options) in runs.items():
        model = make()
        losses, norms = train(model, plan_of(model), shares, **options)
        write_way(folder, name, 0, model, losses, {"norms": norms})


def write_way(folder: Path, name: str, rank: int, model: Any, losses: Tensor, about: dict[str, Any]) -> None:
    model = getattr(model, "_orig_mod", model)
    write(folder, name, rank, getattr(model, "module", model), losses, about)


def two_processes(folder: Path) -> None:
    rank = dist.get_rank()
    mine = [[ids] for ids in batches(rank, 2)]

    def run(name: str, model: Any, plan: fl.Plan, shares: list[list[Tensor]] = mine, **options: Any) -> None:
        losses, norms = train(model, plan, shares, **options)
        dist.all_reduce(losses)
        write_way(folder, name, rank, model, losses / 2, {"norms": norms})

    def ddp(name: str, compiled: bool = False, optimizer: Any = torch.optim.AdamW, **options: Any) -> None:
        model = make_model()
        plan = choose(model)
        wrapped: Any = DistributedDataParallel(model, **options)
        run(name, torch.compile(wrapped, backend="aot_eager") if compiled else wrapped, plan, optimizer=optimizer)

    def fsdp(
        name: str, make: Any = make_model, plan_of: Any = choose, clip: Clip | None = None, **options: Any
    ) -> None:
        model = make()
        plan = plan_of(model)
        run(name, shard(model, **options), plan, clip=clip)

    ddp("ddp")
    ddp("ddp, static graph", static_graph=True)
    ddp("ddp, gradients as views", gradient_as_bucket_view=True)
    ddp("ddp, compiled", compiled=True)
    ddp("ddp, by rows", optimizer=fl.optim.RowAdamW)
    fsdp("fsdp")
    fsdp("fsdp, not resharded", reshard_after_forward=False)
    fsdp("fsdp, clipped", clip=clip)
    fsdp("fsdp, offloaded", offload_policy=CPUOffloadPolicy(pin_memory=False))
    fsdp("fsdp, by columns", shard_placement_fn=lambda tensor: Shard(1) if tensor.ndim == 2 else Shard(0))
    fsdp("fsdp, replicated", mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("copies", "shards")))
    fsdp("fsdp, mixed", mp_policy=MIXED)
    fsdp("fsdp, half", make_half, choose_half)
    fsdp("fsdp, half, mixed", make_half, choose_half, mp_policy=MIXED)

    model = make_model()
    plan = choose(model)
    apply_activation_checkpointing(model, check_fn=lambda module: module in list(model.model.layers))
    run("fsdp, checkpointed", shard(model), plan)

    model = make_model()
    plan = choose(model)
    run("fsdp, compiled", torch.compile(shard(model), backend="aot_eager"), plan)

    run("fsdp, made without data", *made_without_data())
    accumulated(rank, run)
    for way, options in {
        "accelerate": {"cpu_ram_efficient_loading": False},
        "accelerate, from one process": {"cpu_ram_efficient_loading": True},
        "accelerate, checkpointed": {"cpu_ram_efficient_loading": True, "activation_checkpointing": True},
    }.items():
        with_accelerate(folder, way, rank, mine, options)
    beside_tensor_parallelism(folder, rank)


def made_without_data() -> tuple[Any, fl.Plan]:
    """As large models are made: planned and sharded without data, then filled from the first process's checkpoint."""
    with torch.device("meta"):
        model = make_model()
    plan = choose(model)
    shard(model).to_empty(device="cpu")
    rotary, filled = model.model.rotary_emb, make_model()
    for name, buffer in filled.model.rotary_emb.named_buffers():
        setattr(rotary, name, buffer)
    for parameter in model.parameters():
        nn.init.constant_(parameter, float("nan"))
    full = filled.state_dict() if dist.get_rank() == 0 else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, full, options=options)
    return model, plan


def sync_at_last(model: Any, last: bool) -> AbstractContextManager[Any]:
    if isinstance(model, DistributedDataParallel):
        return nullcontext() if last else model.no_sync()
    model.set_requires_gradient_sync(last)
    return nullcontext()


def accumulated(rank: int, run: Any) -> None:
    """One sentence at a time; gradients are reduced after the last one only."""
    sentences = [list(ids.chunk(2)) for ids in batches(rank, 2)]
    model = make_model()
    plan = choose(model)
    run("fsdp, accumulated", shard(model), plan, sentences, around=sync_at_last)
    model = make_model()
    plan = choose(model)
    run("ddp, accumulated", DistributedDataParallel(model), plan, sentences, around=sync_at_last)


def with_accelerate(folder: Path, name: str, rank: int, shares: list[list[Tensor]], options: dict[str, Any]) -> None:
    """`Accelerator.prepare` with its FSDP2 plugin; a model that only the first process has is sent to the other."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    layers = {"auto_wrap_policy": "transformer_based_wrap", "transformer_cls_names_to_wrap": ["LlamaDecoderLayer"]}
    accelerator = Accelerator(cpu=True)
    accelerator.state.distributed_type = DistributedType.FSDP  # which accelerate sets on accelerators only
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, **layers, **options)
    model = make_half()
    plan = choose_half(model)
    if options["cpu_ram_efficient_loading"] and rank > 0:
        for parameter in model.parameters():
            parameter.data = torch.zeros_like(parameter)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(plan.parameters(), lr=0.02, weight_decay=0.1))
    losses, _ = train(model, plan, shares, optimizer=lambda *args, **kwargs: optimizer)
    dist.all_reduce(losses)
    keys = list(accelerator.get_state_dict(model))
    write_way(folder, name, rank, model, losses / 2, {"norms": [], "keys": keys})


def beside_tensor_parallelism(folder: Path, rank: int) -> None:
    """The feed-forward layers are split over the processes; both see the whole batch."""
    model = make_model()
    plan = choose(model)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        split = {"gate_proj": ColwiseParallel(), "up_proj": ColwiseParallel(), "down_proj": RowwiseParallel()}
        parallelize_module(layer.mlp, mesh, split)
    losses, _ = train(model, plan, [[ids] for ids in batches(0, 1)])
    write_way(folder, "beside tensor parallelism", rank, model, losses, {"norms": []})


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
