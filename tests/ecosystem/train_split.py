"""Train small models under tensor parallelism, save and load them: the script that test_split.py starts.

    python -m torch.distributed.run ... train_split.py FOLDER models    2 processes: language models, layouts, refusals
    python -m torch.distributed.run ... train_split.py FOLDER saved     3 processes: load what 2 have saved
    python -m torch.distributed.run ... train_split.py FOLDER four      4 processes: FSDP2 on a second dimension

The test runs the same functions in one process, for what is expected.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, loss_parallel, parallelize_module

import frostline as fl

V, ROWS, HEAD_ROWS = 121, [7, 119, 3, 60], [119, 60, 3]  # odd, so that shards are not of the same size
MODELS = [f"{kind}, {tie}" for kind, tie in product(["llama", "gpt2"], ["tied", "untied"])]
ORDERS = ["plan first", "plan after"]


def make(name: str) -> Any:
    """One of MODELS."""
    import transformers

    torch.manual_seed(0)
    kind, tied = name.split(", ")
    shape: dict[str, Any] = {"vocab_size": V, "tie_word_embeddings": tied == "tied"}
    if kind == "llama":
        shape |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
    dropout = dict.fromkeys(["attn_pdrop", "embd_pdrop", "resid_pdrop"], 0.0) | {"bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, n_embd=32, n_layer=2, n_head=4, **dropout))


def table(model: Any) -> str:
    return "model.embed_tokens.weight" if hasattr(model, "model") else "transformer.wte.weight"


def choose(model: Any) -> fl.Plan:
    head = {} if model.config.tie_word_embeddings else {"lm_head.weight": fl.rows(HEAD_ROWS)}
    return fl.train_only(model, {table(model): fl.rows(ROWS), **head})


def split(model: Any, mesh: Any) -> None:
    """Table and head by rows of the vocabulary; of Llama the feed-forward layers too."""
    split: dict[str, Any] = {
        table(model).removesuffix(".weight"): RowwiseParallel(input_layouts=Replicate()),
        "lm_head": ColwiseParallel(output_layouts=Replicate()),
        "model.layers.*.mlp.gate_proj": ColwiseParallel(),
        "model.layers.*.mlp.up_proj": ColwiseParallel(),
        "model.layers.*.mlp.down_proj": RowwiseParallel(),
    }
    known = "model.layers" if hasattr(model, "model") else ""
    parallelize_module(model, mesh, {k: style for k, style in split.items() if known or "layers" not in k})


def prepare(name: str, order: str, mesh: Any) -> tuple[Any, fl.Plan]:
    model = make(name)
    if order == "plan first":
        plan = choose(model)
        split(model, mesh)
        return model, plan
    split(model, mesh)
    if model.config.tie_word_embeddings:
        model.tie_weights()  # torch splits tied modules one by one
    return model, choose(model)


def batches() -> Tensor:
    """(steps, sentences, ids): ids that learn, that do not, and that repeat."""
    ids = torch.randint(V, (6, 4, 10), generator=torch.Generator().manual_seed(1))
    ids[:, :, 2:6] = torch.tensor([7, 119, 3, 7])
    return ids


def train(model: Any, plan: fl.Plan, share: int = 0, shares: int = 1) -> Tensor:
    """The loss of each step on one share of the sentences."""
    optimizer, losses = torch.optim.AdamW(plan.parameters(), lr=0.02, weight_decay=0.1), []
    for ids in batches():
        optimizer.zero_grad()
        mine = ids.chunk(shares)[share]
        loss = model(input_ids=mine, labels=mine).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def whole(values: dict[str, Any]) -> dict[str, Tensor]:
    return {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()
        for name, value in values.items()
    }


def write(folder: Path, name: str, model: nn.Module, losses: Tensor) -> None:
    learned = {f"learned.{key}": value for key, value in model.named_parameters() if value.requires_grad}
    tensors = whole(model.state_dict()) | whole(learned) | {"losses": losses}
    save_file(tensors, folder / f"{name}.{dist.get_rank()}.safetensors")


class Small(nn.Module):
    """A table, and two linear layers with biases; rows and entries of all of them learn."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 6, padding_idx=0)
        self.up = nn.Linear(6, 12)
        self.down = nn.Linear(12, 5)

    def forward(self, ids: Tensor) -> Tensor:
        loss: Tensor = self.down(torch.tanh(self.up(self.embed(ids)))).pow(2).mean()
        return loss


SMALL_IDS = torch.randint(11, (3, 12), generator=torch.Generator().manual_seed(3))
LAYOUTS: dict[str, dict[str, Any]] = {
    "by rows": {
        "embed": RowwiseParallel(input_layouts=Replicate()),
        "up": ColwiseParallel(),
        "down": RowwiseParallel(),
    },
    "by columns": {
        "embed": ColwiseParallel(output_layouts=Replicate()),
        "up": ColwiseParallel(output_layouts=Replicate()),
    },
    "along the sequence": {
        "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(),
    },
}


def choose_small(model: nn.Module) -> fl.Plan:
    entries = torch.rand(12, 6, generator=torch.Generator().manual_seed(5)) < 0.3
    learns = {
        "embed.weight": fl.rows([9, 1, 10, 6], dtype=torch.float64),
        "up.weight": fl.entries(entries),
        "up.bias": fl.rows([11, 0]),
        "down.weight": fl.rows([4, 1]),
        "down.bias": fl.entries(torch.tensor([True, False, False, True, False])),
    }
    return fl.train_only(model, learns)


def optimizer_of(plan: fl.Plan) -> torch.optim.Optimizer:
    return torch.optim.AdamW(plan.parameters(), lr=0.05, weight_decay=0.1)


def train_small(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> Tensor:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(SMALL_IDS)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def prepare_small(layout: str, order: str, mesh: Any) -> tuple[Any, fl.Plan]:
    model = Small()
    if order == "plan first":
        plan = choose_small(model)
        return parallelize_module(model, mesh, LAYOUTS[layout]), plan
    parallelize_module(model, mesh, LAYOUTS[layout])
    return model, choose_small(model)


def save(folder: Path, name: str, model: nn.Module) -> None:
    dcp.save({"model": model.state_dict()}, checkpoint_id=folder / name)
    fl.save_learned(model, folder / f"{name}.learned.safetensors")


def load_all(folder: Path, name: str, model: nn.Module) -> dict[str, Tensor]:
    """The values of a new model, planned and laid out as this one, after loading the checkpoint `name`."""
    state = {"model": model.state_dict()}
    dcp.load(state, checkpoint_id=folder / name)
    model.load_state_dict(state["model"])
    learned = {f"learned.{key}": value for key, value in model.named_parameters() if value.requires_grad}
    return whole(model.state_dict()) | whole(learned)


def load_learned(folder: Path, name: str, model: nn.Module) -> dict[str, Tensor]:
    fl.load_learned(model, folder / f"{name}.learned.safetensors")
    return whole(model.state_dict())


def language_models(folder: Path, mesh: Any) -> None:
    for name, order in product(MODELS, ORDERS):
        model, plan = prepare(name, order, mesh)
        write(folder, f"{name}, {order}", model, train(model, plan))
        same = model.lm_head.weight is model.get_input_embeddings().weight
        assert same == model.config.tie_word_embeddings


def from_pretrained(folder: Path) -> None:
    """transformers splits the model as it loads it; the plan comes after."""
    from transformers import LlamaForCausalLM
    from transformers.distributed import DistributedConfig

    for name in ("llama, tied", "llama, untied"):
        if dist.get_rank() == 0:
            make(name).save_pretrained(folder / name)
        dist.barrier()
        how = DistributedConfig(tp_size=dist.get_world_size(), tp_plan="auto")
        model = LlamaForCausalLM.from_pretrained(folder / name, distributed_config=how).train()
        write(folder, f"{name}, from_pretrained", model, train(model, choose(model)))
        model.eval()
        with torch.no_grad():
            said = {"logits": model(batches()[0]).logits}
            said["generated"] = model.generate(batches()[0], max_new_tokens=5, do_sample=False, pad_token_id=0)
        save_file(said, folder / f"{name}, said.{dist.get_rank()}.safetensors")
        model.save_pretrained(folder / f"{name}, saved")


def layouts(folder: Path, mesh: Any) -> None:
    for layout, order in product(LAYOUTS, ORDERS):
        model, plan = prepare_small(layout, order, mesh)
        write(folder, f"{layout}, {order}", model, train_small(model, optimizer_of(plan)))


def second_dimension(folder: Path, shape: tuple[int, int], names: list[str]) -> None:
    """FSDP2 shards once more what tensor parallelism has split."""
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("copies", "parts"))
    for name, order in product(names, ORDERS):
        model, plan = prepare(name, order, mesh["parts"])
        for layer in model.model.layers if hasattr(model, "model") else model.transformer.h:
            fully_shard(layer, mesh=mesh["copies"])
        fully_shard(model, mesh=mesh["copies"])
        losses = train(model, plan, mesh["copies"].get_local_rank(), shape[0])
        dist.all_reduce(losses, group=mesh.get_group("copies"))
        label = f"{name}, {order}, {shape[0]} x {shape[1]}"
        write(folder, label, model, losses / shape[0])
        fl.save_learned(model, folder / f"{label}.learned.safetensors")


def largest_allocation(step: Callable[[], object]) -> int:
    """Bytes of the largest block that a step has asked the allocator for."""
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    return max(event.nbytes() for event in events if event.name() == "[memory]")


def allocations(mesh: Any) -> dict[str, int]:
    """For a tied table and head of 4,096 x 64, and few ids: what learns -> the largest block of a step."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(4096, 64), nn.Linear(64, 4096, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            loss: Tensor = nn.functional.cross_entropy(self.head(self.embed(ids)), ids)
            return loss

    found = {}
    for learns in ("rows", "everything"):
        model = Tied()
        plan = fl.train_only(model, {"embed.weight": fl.rows([5, 4000]) if learns == "rows" else fl.everything})
        styles = {"embed": RowwiseParallel(input_layouts=Replicate()), "head": ColwiseParallel(use_local_output=False)}
        parallelize_module(model, mesh, styles)
        optimizer = torch.optim.SGD(plan.parameters(), lr=0.1)

        def step(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            with loss_parallel():  # the logits stay split, too
                model(torch.tensor([5, 6, 4000, 5])).backward()
            optimizer.step()

        found[learns] = largest_allocation(step)
    return found


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def refusals(mesh: Any) -> dict[str, str]:
    model, _ = prepare_small("by rows", "plan first", mesh)
    weight = model.up.weight
    other = Small()
    fl.train_only(other, {"embed.weight": fl.rows([1, 2] if dist.get_rank() else [2, 1])})

    def write_in_place() -> None:
        with torch.no_grad():
            weight[1].zero_()

    def assign() -> None:
        nn.Linear(6, 12).weight = weight

    def shuffled() -> None:
        parallelize_module(other, mesh, LAYOUTS["by rows"])

    def whole_then_rows() -> None:
        model = parallelize_module(Small(), mesh, LAYOUTS["by rows"])
        optimizer = torch.optim.AdamW(fl.train_only(model, {"embed.weight": fl.everything}).parameters(), lr=0.1)
        model(SMALL_IDS).backward()
        optimizer.step()
        fl.train_only(model, {"embed.weight": fl.rows([1])}).carry(optimizer)

    return {
        "write": error_of(write_in_place),
        "data": error_of(lambda: weight.data.fill_(0.0)),
        "init": error_of(lambda: nn.init.zeros_(weight)),
        "assign": error_of(assign),
        "gradient": error_of(lambda: torch.autograd.grad(model(SMALL_IDS), [weight])),
        "other order": error_of(shuffled),
        "carry": error_of(whole_then_rows),
        "convert": error_of(lambda: model.to(torch.float64)),
        "convert to what it is": error_of(lambda: model.to("cpu")),
        "held": (fl.merge(model), error_of(lambda: weight + 0))[1],
    }


def looks(mesh: Any) -> dict[str, Any]:
    """What looking at a split model says, and that it changes nothing; carry, merge and a further plan."""
    model, plan = prepare_small("by rows", "plan first", mesh)
    optimizer = optimizer_of(plan)
    train_small(model, optimizer)
    before = whole(dict(model.named_parameters()))
    explained = fl.explain(model, lambda: model(SMALL_IDS), optimizer)
    moved = fl.trial_step(model, lambda: model(SMALL_IDS), optimizer)
    (gradient,) = fl.gradients(lambda: model(SMALL_IDS), wrt=[model.embed.weight.learned])
    same = all(torch.equal(value, before[name]) for name, value in whole(dict(model.named_parameters())).items())
    moments = optimizer.state[model.embed.weight.learned]["exp_avg"]
    fl.train_only(model, {"embed.weight": fl.rows([2, 10], dtype=torch.float64)}).carry(optimizer)
    carried = optimizer.state[model.embed.weight.learned]["exp_avg"]
    saved = whole(model.state_dict())
    fl.merge(model)
    merged = whole(model.state_dict())
    return {
        "explained": [(finding.name, finding.verdict) for finding in explained.findings],
        "moved": {name: [each.entries_moved, each.entries, each.num_rows] for name, each in moved.tensors.items()},
        "gradient": list(gradient.shape),
        "nothing changed": same,
        "carried": [bool((moments[2] != 0).any()), torch.equal(carried[1], moments[2]), not carried[0].any()],
        "merged": type(model.embed) is nn.Embedding and all(torch.equal(merged[key], saved[key]) for key in saved),
    }


def models(folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    language_models(folder, mesh)
    from_pretrained(folder)
    layouts(folder, mesh)
    second_dimension(folder, (2, 1), ["llama, tied"])
    second_dimension(folder, (1, 2), ["gpt2, untied"])
    model, plan = prepare_small("by rows", "plan first", mesh)
    train_small(model, optimizer_of(plan))
    save(folder, "two", model)
    about = {"largest": allocations(mesh), "refusals": refusals(mesh), "looks": looks(mesh)}
    (folder / f"about.{dist.get_rank()}.json").write_text(json.dumps(about))


def compiled(folder: Path) -> None:
    """A module with a split weight runs eagerly in a compiled model."""
    model, _ = prepare_small("by rows", "plan first", init_device_mesh("cpu", (dist.get_world_size(),)))
    found = []
    for call in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        call(SMALL_IDS).backward()
        found.append(torch.cat([value.grad.flatten() for value in model.parameters() if value.requires_grad]))
    save_file({"eager": found[0], "compiled": found[1]}, folder / f"compiled.{dist.get_rank()}.safetensors")


def four(folder: Path) -> None:
    second_dimension(folder, (2, 2), MODELS)
    compiled(folder)


def saved(folder: Path) -> None:
    """Three processes, in another layout, load what one and two have saved, and save it again."""
    mesh, rank = init_device_mesh("cpu", (3,)), dist.get_rank()
    for name in ("one", "two"):
        model, _ = prepare_small("by columns", "plan after", mesh)
        save_file(load_all(folder, name, model), folder / f"{name} in three.{rank}.safetensors")
        save(folder, f"{name} by three", model)
        model, _ = prepare_small("by rows", "plan after", mesh)
        save_file(load_learned(folder, name, model), folder / f"{name} learned in three.{rank}.safetensors")
        fl.save_learned(model, folder / f"{name} again.learned.safetensors")
        plain = parallelize_module(Small(), mesh, LAYOUTS["by columns"])
        save_file(load_learned(folder, name, plain), folder / f"{name} learned in plain.{rank}.safetensors")


def main(folder: Path, stage: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    stages = {"models": models, "saved": saved, "four": four}
    stages[stage](folder)
    dist.barrier()
    os._exit(0)  # on a busy machine torch 2.13 with gloo aborts about every fourth ordinary exit, frostline or not


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
