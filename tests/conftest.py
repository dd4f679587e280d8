"""Shared by all tests: starting processes, and failing a run in CI in which a test was skipped."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Skips that CI may have: what cannot be, data that is not the project's, and what the system lacks.
MAY_BE_SKIPPED = (
    "BERT does not generate",
    "real vectors",
    "the shared",
    "needs the reference files",
    "huge pages",
    "needs CUDA",
    "needs a small disk",
    "a library that quantizes",
    "is not one of the extras",
    ": make soak",
)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a skipped test is a failure: an extra, a browser or a compiler is missing there."""
    reporter: Any = session.config.pluginmanager.getplugin("terminalreporter")
    if os.environ.get("CI") != "true" or reporter is None:
        return
    for report in reporter.stats.get("skipped", []):
        reason = str(report.longrepr[2])
        if not any(known in reason for known in MAY_BE_SKIPPED):
            reporter.write_line(f"skipped in CI: {report.nodeid}: {reason}", red=True)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Print the counts of a process of pytest-xdist that drew cases."""
    if drawn := getattr(node, "workeroutput", {}).get("drawn"):
        print(f"\ndrawn cases, {drawn}")


@pytest.fixture(scope="session")
def launch() -> Callable[..., str]:
    """Run a script: `launch(script, *arguments, processes=n)`; one process runs it plainly, several under torchrun.

    What it printed is returned. `launch("-m", module, ...)` runs a module.
    """
    if not Path("/sys/class/net/lo").exists():
        pytest.skip("needs a loopback interface called lo")
    return _launch


@pytest.fixture(scope="session")
def made_up_device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of a device that torch takes for an accelerator, and that refuses to mix with the CPU."""
    from torch import __path__ as torch_folders
    from torch.utils.cpp_extension import include_paths

    base = tmp_path_factory.getbasetemp()
    library = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "elsewhere.so"  # one for all workers
    if not library.exists():
        built_here = base / "elsewhere.so.part"
        command = ["g++", "-std=c++20", "-shared", "-fPIC", *(f"-I{path}" for path in include_paths())]
        command += [str(Path(__file__).parent / "tagger" / "elsewhere.cpp"), f"-L{Path(torch_folders[0]) / 'lib'}"]
        command += ["-ltorch", "-ltorch_cpu", "-lc10", "-o", str(built_here)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stderr
        built_here.replace(library)
    return library


def _launch(*script: object, processes: int = 1) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    for name in ("RANK", "WORLD_SIZE", "PYTHONUNBUFFERED"):
        environment.pop(name, None)
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-addr", "127.0.0.1"]
        # Without torchrun's `python -u`, under which the lines of two processes mix.
        command += ["--master-port", str(_free_port()), "--no-python", sys.executable]
    command += map(str, script)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        try:
            printed, errors = run.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            run.terminate()  # torchrun then ends its processes; killed, it would leave them, and they hold the pipes
            raise
    assert run.returncode == 0, errors
    return printed


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
