"""How training reports to its caller: a callback, and one that prints lines, with a bar if stdout is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from frostline.tagger.config import auxiliary_fraction

if TYPE_CHECKING:
    import rich.progress

    from frostline.errors import RunFolderError
    from frostline.partial import Plan
    from frostline.vectors import Coverage


@dataclass(frozen=True)
class Epoch:
    """One pass over the training sentences: mean loss, F1 on dev (0 to 1), seconds, tokens trained on."""

    number: int
    loss: float
    dev_f1: float
    seconds: float
    tokens: int


class Callback:
    """Training callback. Override any method.

    Attributes:
        stop: Set it to True, and training ends after this step: the best epoch so far is returned, the checkpoint is
            written, and a later run can resume from it. Not with `distributed`, where all would have to stop at once.
    """

    stop = False

    def start(self, plan: Plan, coverage: Coverage) -> None:
        """Do something before training begins."""

    def resumed(self, history: Sequence[Epoch], tokens: int) -> None:
        """Do something when a run resumes after the epochs of `history` and `tokens` tokens of the next."""

    def batch(self, tokens: int) -> None:
        """Do something after each step, which trained on `tokens` tokens."""

    def epoch(self, epoch: Epoch) -> None:
        """Do something after each epoch."""

    def not_saved(self, error: RunFolderError) -> None:
        """Do something when a checkpoint could not be written; by default the error is raised, which ends training."""
        raise error


class Progress(Callback):
    """Print the coverage, the plan and one line per epoch; between them, on a terminal, a bar.

    The bar shows tokens per second and the time left. It needs rich (the extra `tagger`); without rich, or where stdout
    is not a terminal, only the lines are printed.

    Args:
        epochs: How many epochs there will be.
        tokens: Tokens of the main corpus, which every epoch reads whole.
        auxiliary_tokens: Tokens of the auxiliary corpora, of which each epoch reads less (see `auxiliary_fraction`).
        before: Called with the plan before training begins; an error that it raises prevents it.
    """

    def __init__(
        self,
        epochs: int,
        tokens: int,
        auxiliary_tokens: int = 0,
        before: Callable[[Plan], object] = lambda plan: None,
    ) -> None:
        self._before = before
        self._tokens = [  # of each epoch, estimated: batches are whole
            tokens + round(auxiliary_tokens * auxiliary_fraction(done, epochs)) for done in range(epochs)
        ]
        self._began = time.perf_counter()
        self._done_before = 0  # tokens of the run that this one resumes
        self._done = 0
        self._bar: rich.progress.Progress | None = None
        self._warned = False

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
        self._before(plan)
        self._began = time.perf_counter()
        print(f"coverage {coverage}\n\n{plan}\n", flush=True)

    def resumed(self, history: Sequence[Epoch], tokens: int) -> None:
        """Print where training resumes, and move the bar there."""
        self._done = sum(epoch.tokens for epoch in history)
        self._done_before = self._done + tokens
        print(f"resumed  after {len(history)} epochs and {tokens:,} tokens of the next", flush=True)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done_before)

    def batch(self, tokens: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], tokens)

    def epoch(self, epoch: Epoch) -> None:
        """Print a line."""
        self._done += epoch.tokens
        to_come = sum(self._tokens[epoch.number :])
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=self._done + to_come)
        here = self._done - self._done_before
        seconds_per_token = (time.perf_counter() - self._began) / here if here else epoch.seconds / epoch.tokens
        left, epochs = seconds_per_token * to_come, len(self._tokens)
        print(
            f"epoch {epoch.number:>{len(str(epochs))}}/{epochs}  loss {epoch.loss:.4f}  "
            f"dev F1 {100 * epoch.dev_f1:4.1f}%  {epoch.tokens / epoch.seconds:,.0f} tokens/s  {left:.0f} s left",
            flush=True,
        )

    def not_saved(self, error: RunFolderError) -> None:
        """Print a warning, once: there may be room again, and the tagger can still be saved."""
        if not self._warned:
            print(f"warning  {error} Training goes on.", flush=True)
        self._warned = True


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
