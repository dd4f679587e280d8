"""One bar for many training runs on a terminal; in a pipe, one line for each run."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from frostline.tagger import Coverage, Epoch, Watcher

if TYPE_CHECKING:
    import rich.progress

    from frostline.demo.voice import Voice
    from frostline.partial import Plan


class Ticker(Watcher):
    """Watches several runs, one after the other; prints the plan of the first.

    Args:
        voice: Where to print.
        epochs: Epochs of each run.
        tokens: Tokens of all epochs of all runs together.
    """

    def __init__(self, voice: Voice, epochs: int, tokens: int) -> None:
        self._name = ""
        self._voice, self._epochs, self._tokens = voice, epochs, tokens
        self._bar: rich.progress.Progress | None = None
        self._shown = False
        self._began = 0.0
        self._best = 0.0

    def __enter__(self) -> Ticker:
        if self._voice.console:
            from rich import progress

            columns = (
                progress.TextColumn("  {task.description}"),
                progress.BarColumn(),
                progress.TimeRemainingColumn(),
            )
            self._bar = progress.Progress(*columns, console=self._voice.console, transient=True)
            self._bar.start()
            self._bar.add_task("training", total=self._tokens)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def named(self, name: str) -> Ticker:
        """Watch the next run under this name."""
        self._name = name
        return self

    def start(self, plan: Plan, coverage: Coverage) -> None:
        """Print the plan of the first run."""
        if not self._shown:
            self._voice.lines(f"\n{plan}\n")
            self._shown = True
        self._began, self._best = time.perf_counter(), 0.0

    def batch(self, tokens: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], advance=tokens, description=self._name)

    def epoch(self, epoch: Epoch) -> None:
        """Print one line after the last epoch of a run."""
        self._best = max(self._best, epoch.dev_f1)
        if epoch.number == self._epochs:
            seconds = time.perf_counter() - self._began
            self._voice.lines(
                f"{self._name:<28} {epoch.number} epochs, loss {epoch.loss:.3f}, "
                f"best dev F1 {100 * self._best:4.1f} %, {seconds:.1f} s"
            )
