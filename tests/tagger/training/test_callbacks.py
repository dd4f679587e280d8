"""A terminal gets a bar, a pipe gets plain lines, and both get a line per epoch."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import pytest

from frostline import tagger
from frostline.tagger.training.callbacks import Progress


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _printed(toy: Any, stdout: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with Progress(2, sum(len(tokens) for tokens, _ in toy.train)) as progress:
        tagger.train(toy.train, toy.dev, toy.vectors, epochs=2, config=toy.config, callback=progress)
    return stdout.getvalue()


def test_a_pipe_gets_plain_lines(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = _printed(toy, io.StringIO(), monkeypatch)
    lines = printed.splitlines()
    assert re.match(r"coverage \d+ of \d+ words have a vector", lines[0])
    assert [line.split("  ")[0] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert all("tokens/s" in line and line.endswith("s left") for line in lines if line.startswith("epoch"))
    assert lines[-1].endswith(" 0 s left")
    assert not {"\x1b", "\r"} & set(printed)


def test_a_terminal_gets_a_bar_with_the_speed_and_the_same_lines(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_the_bar_is_full_when_training_ends_also_with_an_auxiliary_corpus(
    toy: Any, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    pytest.importorskip("rich", reason="the bar needs rich")
    monkeypatch.setattr(sys, "stdout", _Terminal())
    also = toy.train[:77]
    sizes = (sum(len(tokens) for tokens, _ in corpus) for corpus in (toy.train, also))
    with Progress(epochs, *sizes) as progress:
        run = tagger.train(
            toy.train, toy.dev, toy.vectors, auxiliary=[also], epochs=epochs, config=toy.config, callback=progress
        )
        assert progress._bar is not None
        (bar,) = progress._bar.tasks
    assert bar.completed == bar.total == sum(epoch.tokens for epoch in run.history)


def test_the_time_left_is_estimated_from_the_tokens_to_come(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(3, 100, auxiliary_tokens=200)  # 300, 200 and 100 tokens
    clock = iter([10.0, 40.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    progress.start("plan", "coverage")  # type: ignore[arg-type]
    progress.epoch(tagger.Epoch(1, 0.5, 0.5, 30.0, 300))
    assert capsys.readouterr().out.endswith(" 30 s left\n")


def test_after_resuming_the_time_left_is_estimated_from_the_tokens_since(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(3, 100, auxiliary_tokens=200)
    clock = iter([10.0, 15.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    progress.start("plan", "coverage")  # type: ignore[arg-type]
    progress.resumed([tagger.Epoch(1, 0.5, 0.5, 30.0, 300)], 150)
    progress.epoch(tagger.Epoch(2, 0.5, 0.5, 20.0, 200))  # 50 tokens in 5 seconds, 100 to come
    assert capsys.readouterr().out.endswith(" 10 s left\n")
