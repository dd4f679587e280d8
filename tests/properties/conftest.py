"""Prints the seed and how many cases were drawn, axis by axis."""

from __future__ import annotations

import pytest

from . import counts
from .cases import SEED


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a process of pytest-xdist, hand over the counts: it prints nothing."""
    if counts.totals and hasattr(session.config, "workeroutput"):
        session.config.workeroutput["drawn"] = f"FROSTLINE_SEED={SEED}\n{counts.table()}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if counts.totals:
        terminalreporter.section(f"drawn cases, FROSTLINE_SEED={SEED}")
        terminalreporter.write_line(counts.table())
