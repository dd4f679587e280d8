"""Prints the seed and how many cases were drawn, axis by axis."""

from __future__ import annotations

import pytest

from . import counts
from .cases import SEED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if counts.totals:
        terminalreporter.section(f"drawn cases, FROSTLINE_SEED={SEED}")
        terminalreporter.write_line(counts.table())
