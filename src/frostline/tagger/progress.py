"""Training as people watch it: a bar on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from frostline.tagger.vocabulary import Coverage
from frostline.tagger.watching import Epoch, Watcher

if TYPE_CHECKING:
    import rich.progress

    from frostline.partial import Plan


class Progress(Watcher):
    """Prints the coverage, the plan and one line an epoch; between them, on a terminal, a bar.

    The bar shows tokens a second and the time left. It needs rich (the extra `tagger`); without rich, or where stdout
    is no terminal, the lines alone are printed.

    Args:
        epochs: How many epochs there will be.
        tokens: Tokens of one epoch.
    """

    def __init__(self, epochs: int, tokens: int) -> None:
        self._epochs = epochs
        self._tokens = tokens
        self._began = time.perf_counter()
        self._done_before = 0.0  # epochs, by the training that this one resumes
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> Progress:
        self._bar = _bar() if sys.stdout.isatty() else None
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task("training", total=self._epochs * self._tokens)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, plan: Plan, coverage: Coverage) -> None:
        """Print what the vectors cover and what learns."""
        self._began = time.perf_counter()
        print(f"coverage {coverage}\n\n{plan}\n", flush=True)

    def resumed(self, history: Sequence[Epoch], tokens: int) -> None:
        """Print where it goes on, and move the bar there."""
        self._done_before = len(history) + tokens / self._tokens
        print(f"resumed  after {len(history)} epochs and {tokens:,} tokens of the next", flush=True)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=round(self._done_before * self._tokens))

    def batch(self, tokens: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], tokens)

    def epoch(self, epoch: Epoch) -> None:
        """Print one line."""
        here = epoch.number - self._done_before
        of_one = (time.perf_counter() - self._began) / here if here else epoch.seconds
        left = of_one * (self._epochs - epoch.number)
        print(
            f"epoch {epoch.number:>{len(str(self._epochs))}}/{self._epochs}  loss {epoch.loss:.4f}  "
            f"dev F1 {100 * epoch.dev_f1:4.1f}%  {epoch.tokens / epoch.seconds:,.0f} tokens/s  {left:.0f} s left",
            flush=True,
        )


def _bar() -> rich.progress.Progress | None:
    try:
        from rich import progress
    except ImportError:
        return None

    class Speed(progress.ProgressColumn):
        def render(self, task: progress.Task) -> str:
            return f"{task.speed or 0:,.0f} tokens/s"

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        Speed(),
        progress.TimeRemainingColumn(),
        transient=True,
    )
