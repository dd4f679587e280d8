"""The loop: steps over shuffled batches; after each epoch the averaged weights are judged on dev, and the best kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frostline.errors import FrostlineError
from frostline.tagger.config import Options, beside, precision
from frostline.tagger.data.batches import Encoded, chance_of_hiding, pad, shuffled
from frostline.tagger.data.vocabulary import UNKNOWN
from frostline.tagger.network.model import Head, shares
from frostline.tagger.tagger import Labelled, Tagger
from frostline.tagger.training.adam import AdamW
from frostline.tagger.training.callbacks import Epoch, Watcher
from frostline.tagger.training.data_parallel import Team
from frostline.tagger.training.optimizer import Average


@dataclass(frozen=True)
class Task:
    """One labelled corpus: its sentences as numbers, none of them empty, and the head that learns from them."""

    sentences: list[Encoded]
    head: Head


class Fit:
    """Training in progress.

    Args:
        tagger: What is trained, in place.
        tasks: What to learn from: the first is what counts, the others fade (see `beside`). A batch holds sentences of
            one of them.
        parameters: What learns.
        epochs: Passes over the first task.
        options: Rates.
        seed: Of the order of batches and of which words are hidden; dropout draws from the global generator.
        team: Who works on it; every process is given the same, but for the draws of dropout.
        bf16: Multiply matrices in bfloat16.

    Attributes:
        history: The epochs so far.
        seen: Tokens learned from in the epoch that is under way.
    """

    def __init__(
        self,
        tagger: Tagger,
        tasks: Sequence[Task],
        parameters: list[nn.Parameter],
        epochs: int,
        options: Options,
        seed: int,
        team: Team,
        bf16: bool,
    ) -> None:
        self._tagger, self._tasks, self._parameters, self._options = tagger, tasks, parameters, options
        self._generator = torch.Generator().manual_seed(seed)
        self._optimizer = AdamW(parameters, options.decay)
        self._average = Average(parameters, options.average)
        self.history: list[Epoch] = []
        self._best_values: list[Tensor] = []
        self._left: list[tuple[int, list[int]]] = []  # batches still to come in this epoch
        self._loss_sum, self.seen, self._seconds = 0.0, 0, 0.0  # of this epoch
        self._team = team
        self._bf16 = bf16
        self._epochs = epochs
        heads = [{id(weight) for weight in task.head.parameters()} for task in tasks]
        self._learning = [  # of each task: all but the heads of the others
            [p for p in parameters if not any(id(p) in head for head in heads if head is not own)] for own in heads
        ]
        read = [sentence for task in tasks for sentence in task.sentences]
        self._hidden_with = chance_of_hiding(read, tagger.vocabulary, options.hide)
        self._steps = sum(self._batches(number, done) for number in range(len(tasks)) for done in range(epochs))

    def run(
        self,
        dev: Sequence[Labelled],
        watch: Watcher,
        patience: int | None = None,
        after_step: Callable[[Fit], object] | None = None,
    ) -> Epoch:
        """Train to the end, or until `patience` epochs brought nothing better.

        Returns:
            The best epoch, whose weights the model then has.
        """
        while len(self.history) < self._epochs and not self._stalled(patience):
            self._epoch(dev, watch, after_step)
        _put(self._best_values, self._parameters)
        self._lean()
        self._tagger.model.eval()
        return _best(self.history)

    def _stalled(self, patience: int | None) -> bool:
        return (
            patience is not None and bool(self.history) and len(self.history) - _best(self.history).number >= patience
        )

    def _epoch(self, dev: Sequence[Labelled], watch: Watcher, after_step: Callable[[Fit], object] | None) -> None:
        self._tagger.model.train()
        if not self.seen:
            self._left = self._groups()
        while self._left:
            began = time.perf_counter()
            number, group = self._left.pop()
            loss, tokens = self._step(number, group)
            if not math.isfinite(loss):
                raise FrostlineError(
                    f"train: the loss is {loss} in step {self._average.steps} of {self._steps}. Values are not "
                    f"finite, or grew too far: pass Options(learning_rate=...) below {self._options.learning_rate}."
                )
            self._loss_sum += loss * tokens
            self.seen += tokens
            self._seconds += time.perf_counter() - began
            if after_step is not None:
                after_step(self)
            watch.batch(tokens)
        with self._average.in_place():
            self._lean()
            f1 = self._tagger.evaluate(dev).f1
        self.history.append(Epoch(len(self.history) + 1, self._loss_sum / self.seen, f1, self._seconds, self.seen))
        self._loss_sum, self.seen, self._seconds = 0.0, 0, 0.0
        if self.history[-1] is _best(self.history):
            self._best_values = [value.clone() for value in self._average.values]
        watch.epoch(self.history[-1])

    @torch.no_grad()
    def _lean(self) -> None:
        """Lean away from O, the first tag, whose score training leaves too high for the best F1."""
        self._tagger.model.head.linear.bias[0] -= self._options.lean

    def _groups(self) -> list[tuple[int, list[int]]]:
        """Draw the batches of one epoch: the number of a task, and those of its sentences."""
        groups = []
        for number, task in enumerate(self._tasks):
            drawn = shuffled([len(one.rows) for one in task.sentences], self._options.batch, self._generator)
            groups += [(number, group) for group in drawn[: self._batches(number, done=len(self.history))]]
        return [groups[i] for i in torch.randperm(len(groups), generator=self._generator).tolist()]

    def _batches(self, number: int, done: int) -> int:
        """Return how many batches of a task the epoch after `done` others has."""
        batches = math.ceil(len(self._tasks[number].sentences) / self._options.batch)
        return round(batches * beside(done, self._epochs)) if number else batches

    def _step(self, number: int, group: list[int]) -> tuple[float, int]:
        """Learn from one batch of a task; return its mean loss, and how many tokens it has."""
        task, learning = self._tasks[number], self._learning[number]
        whole = pad([task.sentences[one] for one in group])
        hide = torch.rand(whole.rows.shape, generator=self._generator) < self._hidden_with[whole.rows]
        share = shares(whole.tags, self._options.by_sentence)
        device = self._tagger.device
        batch = self._team.part(whole._replace(rows=whole.rows.masked_fill(hide, UNKNOWN))).to(device)
        self._team.draw_own(self._generator.initial_seed(), self._average.steps)
        loss = torch.zeros((), device=device)
        self._optimizer.forget_gradients()
        if len(batch.rows):
            with precision(device, self._bf16):
                read = self._tagger.model.read(batch.rows, batch.shapes, batch.lengths, batch.spellings)
                losses = task.head.loss(read, batch.tags, batch.lengths)
            loss = (losses * share[self._team.rank :: self._team.size].to(device)).sum()
            loss.backward()
        loss = self._team.add_up(loss, learning)
        torch.nn.utils.clip_grad_norm_(learning, self._options.clip)
        self._optimizer.step(self._options.learning_rate * (1 - 0.9 * self._average.steps / self._steps))
        self._average.step()
        return float(loss.detach()), int(whole.lengths.sum())

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor that a step reads and changes, by name; not copies."""
        found = {"order": self._generator.get_state(), "dropout": torch.get_rng_state()}
        for name, values in self._lists().items():
            found |= {f"{name}.{number}": value.detach() for number, value in enumerate(values)}
        return found

    def numbers(self) -> dict[str, Any]:
        """Return what else it needs to go on, as JSON takes it."""
        return {
            "history": [asdict(epoch) for epoch in self.history],
            "steps": self._average.steps,
            "left": self._left,
            "epoch": [self._loss_sum, self.seen, self._seconds],
        }

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Go on where `tensors` and `numbers` were taken: every later step is the one that would have followed.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: Something is missing, or of another kind or shape.
        """
        self.history = [Epoch(**epoch) for epoch in numbers["history"]]
        self._average.steps = int(numbers["steps"])
        self._left = [(int(task), [int(one) for one in group]) for task, group in numbers["left"]]
        loss_sum, seen, seconds = numbers["epoch"]
        self._loss_sum, self.seen, self._seconds = float(loss_sum), int(seen), float(seconds)
        for task, group in self._left:
            if task not in range(len(self._tasks)) or not set(group) <= set(range(len(self._tasks[task].sentences))):
                raise ValueError("a batch of sentences that are not there")
        if self.history:
            self._best_values = [torch.empty_like(value) for value in self._average.values]
        for name, places in self._lists().items():
            for number, place in enumerate(places):
                _put([_fitting(tensors, f"{name}.{number}", place.shape, place.dtype)], [place])
        self._generator.set_state(tensors["order"])
        torch.set_rng_state(tensors["dropout"])

    def _lists(self) -> dict[str, Sequence[Tensor]]:
        return {
            "parameter": self._parameters,
            "average": self._average.values,
            "best": self._best_values,
            "mean": self._optimizer.means,
            "square": self._optimizer.squares,
            "count": self._optimizer.counts,
        }


def _fitting(tensors: dict[str, Tensor], name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    if tensors[name].shape != shape or tensors[name].dtype != dtype:
        raise ValueError(f"{name} is not {dtype} of shape {tuple(shape)}")
    return tensors[name]


def _put(values: Sequence[Tensor], places: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for value, place in zip(values, places, strict=True):
            place.copy_(value)


def _best(history: list[Epoch]) -> Epoch:
    return max(history, key=lambda epoch: (epoch.dev_f1, -epoch.loss))
