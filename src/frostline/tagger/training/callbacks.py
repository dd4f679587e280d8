"""How training goes, for whoever watches it.

Training as people watch it: a bar on a terminal, plain lines in a pipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frostline.partial import Plan
    from frostline.tagger.data.vocabulary import Coverage


import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from frostline.tagger.config import beside
from frostline.tagger.data.vocabulary import Coverage

if TYPE_CHECKING:
    import rich.progress

    from frostline.partial import Plan


@dataclass(frozen=True)
class Epoch:
    """One pass over the training sentences: mean loss, F1 on dev (0 to 1), seconds, tokens trained on."""

    number: int
    loss: float
    dev_f1: float
    seconds: float
    tokens: int


class Watcher:
    """Is told how training goes; every method may be overridden, none must be."""

    def start(self, plan: Plan, coverage: Coverage) -> None:
        """Training is about to begin."""

    def resumed(self, history: Sequence[Epoch], tokens: int) -> None:
        """An interrupted training goes on after these epochs, and so many tokens of the next."""

    def batch(self, tokens: int) -> None:
        """One step was made, over so many tokens."""

    def epoch(self, epoch: Epoch) -> None:
        """One pass over the training sentences ended."""


class Progress(Watcher):
    """Prints the coverage, the plan and one line an epoch; between them, on a terminal, a bar.

    The bar shows tokens a second and the time left. It needs rich (the extra `tagger`); without rich, or where stdout
    is no terminal, the lines alone are printed.

    Args:
        epochs: How many epochs there will be.
        tokens: Tokens of the corpus that is learned in each of them.
        also: Tokens of those beside it, of which each epoch draws fewer (see `beside`).
    """

    def __init__(self, epochs: int, tokens: int, also: int = 0) -> None:
        self._tokens = [tokens + round(also * beside(done, epochs)) for done in range(epochs)]  # as far as can be told
        self._began = time.perf_counter()
        self._before = 0  # tokens, by the training that this one resumes
        self._seen = 0
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> Progress:
        self._bar = _bar() if sys.stdout.isatty() else None
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task("training", total=sum(self._tokens))
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
        self._seen = sum(epoch.tokens for epoch in history)
        self._before = self._seen + tokens
        print(f"resumed  after {len(history)} epochs and {tokens:,} tokens of the next", flush=True)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._before)

    def batch(self, tokens: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], tokens)

    def epoch(self, epoch: Epoch) -> None:
        """Print one line."""
        self._seen += epoch.tokens
        to_come = sum(self._tokens[epoch.number :])
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=self._seen + to_come)
        here = self._seen - self._before
        of_one = (time.perf_counter() - self._began) / here if here else epoch.seconds / epoch.tokens
        left, epochs = of_one * to_come, len(self._tokens)
        print(
            f"epoch {epoch.number:>{len(str(epochs))}}/{epochs}  loss {epoch.loss:.4f}  "
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
