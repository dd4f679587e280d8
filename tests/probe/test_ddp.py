"""`fl.gradients` in one process alone under DDP, in all together under FSDP2: no process trains differently."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

SCRIPT = Path(__file__).with_name("ddp_looks.py")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_looked_at_from_one_process_is_the_run_that_is_not(
    processes: int, tmp_path: Path, launch: Callable[..., None]
) -> None:
    launch(SCRIPT, tmp_path, processes=processes)
    reports = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    assert len(reports) == processes
    for rank, report in enumerate(reports):
        assert list(report) == ["plain", "find unused", "static graph", "views", "sharded"]
        for name, found in report.items():
            looks = 30 if rank == 0 or name == "sharded" else 0
            assert found == {"same losses": True, "same state": True, "moved": True, "looks": looks}
