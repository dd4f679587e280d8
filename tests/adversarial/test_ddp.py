"""Adversarial training on two processes is that of one process with the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def test_two_processes_learn_what_one_learns_from_both_halves(launch: Callable[..., str]) -> None:
    assert launch(Path(__file__).with_name("ddp_loss.py"), processes=2).split() == ["same", "moved"]
