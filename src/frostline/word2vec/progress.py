"""Print how training goes: a line for each epoch, and between them one that is overwritten on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from frostline.errors import SelectionError
from frostline.word2vec.training import Training

_PAUSE = 30.0  # seconds between two lines where stdout is not a terminal
_NEIGHBOURS = 8


class Progress:
    """A callback of `train` that prints.

    Args:
        neighbours_of: Words whose neighbours are printed after each epoch.

    Attributes:
        started: Whether a step was done.
    """

    def __init__(self, neighbours_of: Sequence[str] = ()) -> None:
        self._neighbours_of = neighbours_of
        self.started = False
        self._epochs = 0  # that were printed, or were done before the run was resumed
        self._due = time.monotonic() + _PAUSE
        self._terminal = sys.stdout.isatty()

    def __call__(self, training: Training) -> None:
        """Print what there is to print after a step."""
        now = time.monotonic()
        if not self.started:
            self._check_words(training)
            self.started, self._epochs = True, training.resumed_words // training.problem.corpus.size
        epochs = training.problem.settings.epochs
        for epoch in training.history[self._epochs :]:
            self._print(f"epoch {epoch.number}/{epochs}  loss {epoch.loss:.4f}  {self._speed(training)}")
            self._print_neighbours(training)
        self._epochs = len(training.history)
        if self._terminal or now >= self._due:
            self._due = now + _PAUSE
            percent = 100 * training.words_done / training.total_words
            line = f"{percent:5.1f} %  loss {training.loss:.4f}  {self._speed(training)}"
            print(f"\r{line}\x1b[K", end="", flush=True) if self._terminal else print(line, flush=True)

    def _check_words(self, training: Training) -> None:
        for word in self._neighbours_of:
            if word not in training.words:
                count = len(training.words)
                raise SelectionError(f"--neighbours-of: {word!r} is not among the {count:,} words. Name one that is.")

    def _speed(self, training: Training) -> str:
        seconds = max(time.monotonic() - training.began, 1e-6)
        rate = (training.words_done - training.resumed_words) / seconds
        return f"{rate:,.0f} words/s  {(training.total_words - training.words_done) / rate:,.0f} s left"

    def _print_neighbours(self, training: Training) -> None:
        from frostline.vectors.nearest import nearest_rows

        for word in self._neighbours_of:
            rows, _ = nearest_rows(training.matrix, training.words.index(word), _NEIGHBOURS)
            self._print(f"  {word}: {', '.join(training.words[row] for row in rows.tolist())}")

    def _print(self, line: str) -> None:
        print(f"\r{line}\x1b[K" if self._terminal else line, flush=True)
