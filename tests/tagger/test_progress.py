"""A terminal gets a bar, a pipe gets plain lines, and both get one line an epoch."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from frostline import tagger


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _printed(toy: Any, stdout: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with tagger.Progress(2, sum(len(tokens) for tokens, _ in toy.train)) as progress:
        tagger.train(toy.train, toy.dev, toy.vectors, epochs=2, options=toy.options, watch=progress)
    return stdout.getvalue()


def test_a_pipe_gets_plain_lines(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = _printed(toy, io.StringIO(), monkeypatch)
    lines = printed.splitlines()
    assert lines[0].startswith("coverage the vectors have ")
    assert [line.split("  ")[0] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert all("tokens/s" in line and line.endswith("s left") for line in lines if line.startswith("epoch"))
    assert lines[-1].endswith(" 0 s left")
    assert not {"\x1b", "\r"} & set(printed)


def test_a_terminal_gets_a_bar_with_the_speed_beside_the_same_lines(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich", reason="the bar needs rich")
    printed = _printed(toy, _Terminal(), monkeypatch)
    assert "\x1b[" in printed
    assert "━" in printed
    assert "epoch 2/2" in printed
    assert sys.stdout.isatty()


def test_a_terminal_without_rich_gets_the_plain_lines(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    printed = _printed(toy, _Terminal(), monkeypatch)
    assert "epoch 2/2" in printed
    assert "\x1b" not in printed
