"""What does a partial table cost under tensor parallelism?

A Llama of which all is split over two processes (gloo): table, head, attention and feed-forward layers. Compares one
forward + backward + step of
    frozen        one norm of the first layer learns, so the gradient goes back through every layer: the floor
    partial       the same, and four rows of the tied table learn
    everything    the same, and the whole tied table learns
Both processes share the cores of this machine. The variants take turns; the loss of the first step must be the same.
Largest allocation: the largest block that a step asks the allocator for, as torch's profiler records it.

Run:    python benchmarks/tensor_parallel.py [--rows 32000] [--width 512] [--layers 4] [--tokens 128] [--steps 12]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIANTS = ["frozen", "partial", "everything"]


def make(options: argparse.Namespace) -> Any:
    """Return a tied Llama."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": options.width, "intermediate_size": 3 * options.width, "num_attention_heads": 8}
    config = LlamaConfig(vocab_size=options.rows, num_hidden_layers=options.layers, tie_word_embeddings=True, **sizes)
    return LlamaForCausalLM(config)


def prepared(variant: str, options: argparse.Namespace, mesh: Any) -> Callable[[], float]:
    """Return a function that takes one step and returns its loss."""
    import torch
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    import frostline as fl

    rows = [3, options.rows - 1, options.rows // 2, 100]
    learns: dict[str, Any] = {"model.layers.0.input_layernorm.weight": fl.everything}
    if variant != "frozen":
        learns["model.embed_tokens.weight"] = fl.rows(rows) if variant == "partial" else fl.everything
    model = make(options)
    columns = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"]
    styles: dict[str, Any] = {f"model.layers.*.{name}": ColwiseParallel() for name in columns}
    styles |= {f"model.layers.*.{name}": RowwiseParallel() for name in ("self_attn.o_proj", "mlp.down_proj")}
    styles["model.embed_tokens"] = RowwiseParallel(input_layouts=Replicate())
    styles["lm_head"] = ColwiseParallel(output_layouts=Replicate())
    parallelize_module(model, mesh, styles)
    model.tie_weights()
    plan = fl.train_only(model, learns)
    optimizer = torch.optim.AdamW(plan.parameters(), lr=1e-3, foreach=False)
    ids = torch.randint(options.rows, (1, options.tokens), generator=torch.Generator().manual_seed(1))
    ids[0, : len(rows)] = torch.tensor(rows)

    def step() -> float:
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def largest_allocation(step: Callable[[], object]) -> int:
    """Return the bytes of the largest block that a step asks the allocator for."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events: Any = profile.profiler.kineto_results.events()
    return int(max(event.nbytes() for event in events if event.name() == "[memory]"))


def run(options: argparse.Namespace) -> None:
    """Train on this process's share of the model; the first process prints the table."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    steps = {variant: prepared(variant, options, mesh) for variant in options.variants}
    losses = {variant: step() for variant, step in steps.items()}
    first = next(iter(losses.values()))
    assert all(abs(loss - first) < 1e-4 for loss in losses.values()), losses
    wall: dict[str, list[float]] = {variant: [] for variant in steps}
    busy: dict[str, list[float]] = {variant: [] for variant in steps}
    for _ in range(options.steps):
        for variant, step in steps.items():
            dist.barrier()
            start, cpu = time.perf_counter(), time.process_time()
            step()
            busy[variant].append(time.process_time() - cpu)
            wall[variant].append(time.perf_counter() - start)
    largest = {variant: largest_allocation(step) for variant, step in steps.items()}
    dist.barrier()
    if dist.get_rank() == 0:
        table = 4 * options.rows * options.width
        print(
            f"table {options.rows:,} x {options.width} ({table / 1e6:.0f} MB), {options.layers} layers, "
            f"{options.tokens} tokens, {dist.get_world_size()} processes; load {os.getloadavg()[0]:.1f}"
        )
        print(
            f"{'':12} {'median ms':>10} {'fastest':>9} {'CPU, fastest':>13} {'CPU / frozen':>13} {'largest block':>14}"
        )
        for variant in steps:
            cpu = min(busy[variant])
            print(
                f"{variant:12} {1e3 * statistics.median(wall[variant]):10.1f} {1e3 * min(wall[variant]):9.1f} "
                f"{1e3 * cpu:13.1f} {cpu / min(busy[options.variants[0]]):13.2f} {largest[variant] / 1e6:11.1f} MB"
            )
    sys.stdout.flush()
    dist.barrier()
    os._exit(0)  # on a busy machine torch 2.13 with gloo aborts some ordinary exits


def main() -> None:
    """Start two processes of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"rows": 32000, "width": 512, "layers": 4, "tokens": 128, "steps": 12}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    options = parser.parse_args()
    if "RANK" in os.environ:
        return run(options)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(Path(__file__)),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    sys.exit(subprocess.run([*command, *sys.argv[1:]], env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
