"""The loop: steps over shuffled batches; after each epoch the averaged weights are judged on dev, and the best kept."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frostline.tagger.average import Average
from frostline.tagger.batches import Encoded, pad, shuffled
from frostline.tagger.head import Head
from frostline.tagger.options import Options
from frostline.tagger.tagging import Labelled, Tagger
from frostline.tagger.vocabulary import FIRST, UNKNOWN, Vocabulary
from frostline.tagger.watching import Epoch, Watcher


@dataclass(frozen=True)
class Task:
    """One labelled corpus: its sentences as numbers, none of them empty, and the head that learns from them."""

    sentences: list[Encoded]
    head: Head


class Fit:
    """Training in progress.

    Args:
        tagger: What is trained, in place.
        tasks: What to learn from. A batch holds sentences of one of them.
        parameters: What learns.
        epochs: Passes over all tasks.
        options: Rates.
        generator: Draws the order of batches and which words are hidden; dropout takes from the global one.
    """

    def __init__(
        self,
        tagger: Tagger,
        tasks: Sequence[Task],
        parameters: list[nn.Parameter],
        epochs: int,
        options: Options,
        generator: torch.Generator,
    ) -> None:
        self.tagger, self.tasks, self.parameters, self.options = tagger, tasks, parameters, options
        self.generator = generator
        self.optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.decay, fused=True)
        self.average = Average(parameters, options.average)
        self.history: list[Epoch] = []
        self.best_values: list[Tensor] = []
        self._epochs = epochs
        self._hidden_with = chance_of_hiding([s for task in tasks for s in task.sentences], tagger.vocabulary, options)
        self._steps = epochs * sum(math.ceil(len(task.sentences) / options.batch) for task in tasks)

    def run(self, dev: Sequence[Labelled], watch: Watcher) -> Epoch:
        """Train to the end; return the best epoch, whose weights the model then has."""
        while len(self.history) < self._epochs:
            self._epoch(dev, watch)
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.best_values, strict=True):
                parameter.copy_(value)
        self.tagger.model.eval()
        return _best(self.history)

    def _epoch(self, dev: Sequence[Labelled], watch: Watcher) -> None:
        began = time.perf_counter()
        loss_sum, seen = 0.0, 0
        self.tagger.model.train()
        for task, group in self._groups():
            loss, tokens = self._step(task, [task.sentences[number] for number in group])
            loss_sum += loss * tokens
            seen += tokens
            watch.batch(tokens)
        seconds = time.perf_counter() - began
        with self.average.in_place():
            f1 = self.tagger.evaluate(dev).f1
        self.history.append(Epoch(len(self.history) + 1, loss_sum / seen, f1, seconds, seen))
        if self.history[-1] is _best(self.history):
            self.best_values = [value.clone() for value in self.average.values]
        watch.epoch(self.history[-1])

    def _groups(self) -> list[tuple[Task, list[int]]]:
        """Draw the batches of one epoch: a task, and the numbers of its sentences."""
        groups = [
            (task, group)
            for task in self.tasks
            for group in shuffled([len(one.rows) for one in task.sentences], self.options.batch, self.generator)
        ]
        return [groups[i] for i in torch.randperm(len(groups), generator=self.generator).tolist()]

    def _step(self, task: Task, sentences: list[Encoded]) -> tuple[float, int]:
        """Learn from one batch; return the mean loss of its tokens, and how many they are."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * (1 - 0.9 * self.average.steps / self._steps)
        batch = pad(sentences)
        hide = torch.rand(batch.rows.shape, generator=self.generator) < self._hidden_with[batch.rows]
        read = self.tagger.model.read(batch.rows.masked_fill(hide, UNKNOWN), batch.shapes, batch.lengths)
        tokens = int(batch.lengths.sum())
        loss = task.head.loss(read, batch.tags, batch.lengths).sum() / tokens
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.options.clip)
        self.optimizer.step()
        self.average.step()
        return float(loss.detach()), tokens


def chance_of_hiding(sentences: list[Encoded], vocabulary: Vocabulary, options: Options) -> Tensor:
    """Return for each row how often it is read as <unk> in training, float32, shape (V,): 0 but for missing words."""
    counts = torch.bincount(torch.cat([sentence.rows for sentence in sentences]), minlength=len(vocabulary))
    chance = options.hide / (options.hide + counts.clamp(min=1))
    chance[:FIRST] = 0
    chance[FIRST + vocabulary.missing :] = 0
    return chance


def _best(history: list[Epoch]) -> Epoch:
    return max(history, key=lambda epoch: (epoch.dev_f1, -epoch.loss))
