"""One command in several processes, as torchrun starts them: they work together, and the first one speaks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path


@contextmanager
def processes() -> Iterator[tuple[int, int]]:
    """Join the processes that torchrun started, and be silent in all but the first; yield its rank and their number."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield 0, 1
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    try:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere if rank else sys.stdout):
            yield rank, size
    finally:
        dist.destroy_process_group()
