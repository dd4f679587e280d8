"""A command in several processes, as torchrun starts them: they work together, and only rank 0 prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path


@contextmanager
def torchrun_processes() -> Iterator[tuple[int, int]]:
    """Join the process group of torchrun and silence stdout in all processes but rank 0; yield rank and world size."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield 0, 1
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    try:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere if rank else sys.stdout):
            yield rank, world_size
    finally:
        dist.destroy_process_group()
