"""A training run: steps over the text, epoch by epoch, and what can be asked of it on the way."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from frostline.errors import FrostlineError
from frostline.word2vec import sampling
from frostline.word2vec.compiled import Position
from frostline.word2vec.problem import Problem, Table
from frostline.word2vec.start import Tables
from frostline.word2vec.step import train

if TYPE_CHECKING:
    from torch import Tensor

    from frostline.partial import Plan
    from frostline.vectors import Vectors
    from frostline.word2vec.modules import CBOW, SkipGram

_PAUSE = 0.2  # seconds between two calls of a callback, and until Ctrl-C is heeded
_MOST = 1 << 32  # words of a step: those of a small text end with the epoch, and would grow for ever


class Epoch(NamedTuple):
    """One pass over the text: its number from 1, mean loss of a target, seconds, and words read."""

    number: int
    loss: float
    seconds: float
    words: int


class Examples(NamedTuple):
    """A batch as the modules take it: `model(*examples)` is its mean loss."""

    contexts: Tensor  # (B, C), rows of the input table, -1 where the context is shorter
    targets: Tensor  # (B,)
    negatives: Tensor | None  # (B, K); None for the full softmax


@dataclass
class Training:
    """A run, as a callback sees it and as `train` returns it. Nothing here changes the run but `step`.

    Attributes:
        problem: What it trains on.
        tables: The tables at the start; the problem's are the same arrays, as they are now.
        threads: Threads to compute with; the results do not depend on it.
        at: Where it is in the text.
        history: The epochs so far.
        seconds: Of training, in this epoch.
        began: When this process began to train, by `time.monotonic`.
        resumed_words: Words that were done before that.
    """

    problem: Problem
    tables: Tables
    threads: int
    at: Position = field(default_factory=Position)
    history: list[Epoch] = field(default_factory=list)
    seconds: float = 0.0
    began: float = 0.0
    resumed_words: int = 0
    _model: CBOW | SkipGram | None = None
    _plan: Plan | None = None

    def __post_init__(self) -> None:
        self.at.key = self._key()

    @property
    def words(self) -> list[str]:
        """The words, in the order of the rows: those of the text, the most frequent first, then those of the start."""
        return self.tables.words

    @property
    def matrix(self) -> Table:
        """The vectors as they are now, shape (V, D): a view, to be read only."""
        return self.problem.input[:, : self.problem.settings.dim]

    @property
    def words_done(self) -> int:
        """Words read so far, in all epochs."""
        return int(self.at.words_done)

    @property
    def total_words(self) -> int:
        """Words to read, in all epochs."""
        return self.problem.total_words

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return len(self.history) == self.problem.settings.epochs

    @property
    def loss(self) -> float:
        """The mean loss of a target in this epoch so far; nan before the first."""
        return self.at.loss / self.at.targets if self.at.targets else math.nan

    @property
    def vectors(self) -> Vectors:
        """A copy of the vectors as they are now, with their words."""
        from frostline.vectors import Vectors

        return Vectors(self.words, np.array(self.matrix, dtype=np.float32))

    @property
    def model(self) -> CBOW | SkipGram:
        """The model as it is now: a module of its own, in which what does not learn is frozen by a plan.

        The first use makes it; each further one copies the rows that learn into it. What is done to it does not reach
        the run.
        """
        return self._current()[0]

    @property
    def plan(self) -> Plan:
        """What learns, as `train_only` carried it out on `model`."""
        return self._current()[1]

    def _current(self) -> tuple[CBOW | SkipGram, Plan]:
        import torch

        from frostline.partial import everything, train_only
        from frostline.word2vec.modules import CBOW, SkipGram

        dim, problem = self.problem.settings.dim, self.problem
        if self._model is None or self._plan is None:
            kind = SkipGram if problem.settings.skip_gram else CBOW
            with torch.random.fork_rng(devices=[]):
                self._model = kind(self.words, dim, len(problem.output)).to(getattr(torch, problem.settings.dtype))
            for module, table in ((self._model.input, problem.input), (self._model.output, problem.output)):
                module.weight.data.copy_(torch.from_numpy(table[:, :dim]))
            self._plan = train_only(self._model, self.tables.learns or {"*": everything})
        with torch.no_grad():
            for module, table, learns in (
                (self._model.input, problem.input, problem.input_learns),
                (self._model.output, problem.output, problem.output_learns),
            ):
                index = np.flatnonzero(learns)
                if len(index):
                    module.weight[torch.from_numpy(index)] = torch.from_numpy(table[index, :dim])
        return self._model, self._plan

    def examples(self) -> Examples:
        """Return the batch that the run trains on next, with the samples that it will draw.

        Example:
            >>> from frostline import word2vec
            >>> settings = word2vec.Settings(dim=2, min_count=1, sample=0, epochs=1)
            >>> run = word2vec.train([["ice", "snow"]] * 3, settings, callback=lambda run: None)
            >>> run.finished, run.examples().contexts.shape  # nothing is left to train on
            (True, torch.Size([0, 10]))
        """
        import torch

        from frostline.word2vec import reference

        settings = self.problem.settings
        batch = reference.next_batch(self.problem, Position.from_buffer_copy(self.at)) if not self.finished else []
        width = 1 if settings.skip_gram else 2 * settings.window
        contexts, targets, negatives = [torch.empty(0, width, dtype=torch.int64)], [torch.empty(0).long()], []
        for paragraph in batch:
            inside = paragraph.contexts >= 0
            contexts.append(torch.where(inside, paragraph.words[paragraph.contexts.clamp(min=0)], -1))
            targets.append(paragraph.targets)
            negatives.append(paragraph.negatives)
        drawn = torch.cat([torch.empty(0, settings.negatives, dtype=torch.int64), *negatives])
        return Examples(torch.cat(contexts), torch.cat(targets), None if settings.softmax else drawn)

    def step(self, words: int) -> None:
        """Train on at least `words` words, to the end of a batch, or to the end of the epoch.

        Raises:
            FrostlineError: The loss is not finite any more.
        """
        began = time.perf_counter()
        ended = train(self.problem, self.at, words, self.threads)
        self.seconds += time.perf_counter() - began
        self.problem.corpus.release()
        if not math.isfinite(self.at.loss):
            rate = self.problem.settings.rate
            raise FrostlineError(f"alpha: training diverges at {rate}, the loss is not finite. Pass a smaller one.")
        if ended:
            self.history.append(Epoch(len(self.history) + 1, self.loss, self.seconds, self.problem.corpus.size))
            done, self.seconds = self.words_done, 0.0
            self.at = Position(key=self._key(), words_done=done)

    def _key(self) -> int:
        return sampling.key_of(self.problem.settings.seed, len(self.history) + 1)


def run(training: Training, callback: Callable[[Training], None] | None, every: int | None) -> Iterator[None]:
    """Train to the end, and yield after each step: when the callback was called, where a checkpoint may be written.

    Ctrl-C is raised between two steps, where the run can resume.

    Raises:
        FrostlineError: Training diverges, or nothing was left to train on.

    Args:
        training: The run.
        callback: Is called after each step.
        every: Words of a step. None: about five steps a second.
    """
    size = every or 20_000
    training.began, training.resumed_words = time.monotonic(), training.words_done
    with _interrupts_deferred() as raise_interrupt:
        while not training.finished:
            began = time.perf_counter()
            training.step(size)
            seconds = max(time.perf_counter() - began, 1e-6)
            size = every or max(1000, min(10 * size, _MOST, int(size * _PAUSE / seconds)))
            if callback is not None:
                callback(training)
            yield
            raise_interrupt()
    if all(math.isnan(epoch.loss) for epoch in training.history):
        raise FrostlineError(
            "sample: no word had a context: the text is so small that subsampling left no two words of a line. "
            "Pass sample=0, or lines of several words."
        )


@contextmanager
def _interrupts_deferred() -> Iterator[Callable[[], None]]:
    """Note Ctrl-C instead of raising KeyboardInterrupt anywhere; the function that is yielded raises it."""
    pressed: list[int] = []

    def raise_interrupt() -> None:
        if pressed:
            raise KeyboardInterrupt

    def note(number: int, frame: object) -> None:
        if pressed:  # the second time: at once
            raise KeyboardInterrupt
        pressed.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield raise_interrupt
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield raise_interrupt
    finally:
        signal.signal(signal.SIGINT, before)


def learned_rows(training: Training) -> Sequence[tuple[str, Table, sampling.Ints]]:
    """Return name, table and the indices of the rows that learn, of both tables."""
    problem = training.problem
    return [
        ("input", problem.input, np.flatnonzero(problem.input_learns)),
        ("output", problem.output, np.flatnonzero(problem.output_learns)),
    ]
