"""The benchmarks still run, and their ways still agree before they are timed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(*arguments: str) -> str:
    """What a benchmark prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=BENCHMARKS,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_partial_step_benchmark_compares_every_way_with_a_frozen_table() -> None:
    pytest.importorskip("peft")
    printed = run("partial_step.py", "--quick")
    assert printed.startswith("All agree.")
    for way in ("frozen", "partial", "sparse", "hook", "mask+stop", "two tables", "restore", "peft"):
        moved = "100%" if way in ("hook", "mask+stop") else "0%"
        lines = re.findall(rf"^\| {re.escape(way)} \| .*$", printed, re.MULTILINE)
        assert len(lines) == 2, f"{way}: one line for SGD, one for Adam"
        assert all(line.endswith(f"| {moved} |") for line in lines)


def test_the_partial_step_benchmark_notices_a_way_that_disagrees() -> None:
    wrong = "import partial_step as b, ways; ways.WAYS['restore'] = ways.frozen; b.check(['restore'])"
    with pytest.raises(AssertionError, match="not close"):
        run("-c", wrong)
