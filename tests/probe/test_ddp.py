"""Under DDP one process may look alone; under FSDP2 all look together; the run is the same in every process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

SCRIPT = Path(__file__).with_name("ddp_looks.py")
LAUNCHER = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port"]


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_looked_at_from_one_process_is_the_run_that_is_not(processes: int, tmp_path: Path) -> None:
    if not Path("/sys/class/net/lo").exists():
        pytest.skip("needs a loopback interface called lo")
    port = _free_port()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    for name in ("RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    if processes == 1:
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, *([*LAUNCHER, port] if processes == 2 else []), str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    reports = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    assert len(reports) == processes
    for rank, report in enumerate(reports):
        assert list(report) == ["plain", "find unused", "static graph", "views", "sharded"]
        for name, found in report.items():
            looks = 30 if rank == 0 or name == "sharded" else 0
            assert found == {"same losses": True, "same state": True, "moved": True, "looks": looks}
