"""The training loop: a step for each batch; after each epoch the averaged weights are scored on dev, the best kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from frostline import adversarial
from frostline.errors import FrostlineError
from frostline.tagger.config import TaggerConfig, precision
from frostline.tagger.data.batches import Batch
from frostline.tagger.network.model import Head, LSTMTagger, loss_weights
from frostline.tagger.scoring.scores import Score
from frostline.tagger.tagger import Labelled, Tagger
from frostline.tagger.training.callbacks import Callback, Epoch
from frostline.tagger.training.data_parallel import DataParallelGroup
from frostline.tagger.training.optimizer import Optimizer
from frostline.tagger.training.sampler import BatchSampler


class TrainingLoop:
    """A training run in progress, which a checkpoint can save and restore.

    Args:
        tagger: The tagger to train, in place.
        sampler: The batches. Their order is drawn from its generator, dropout from the global one.
        optimizer: The optimizer of everything that learns.
        config: How sentences are weighted, and the bias of O.
        group: The processes that share each batch.
        bf16: Multiply matrices in bfloat16.

    Attributes:
        history: The epochs so far.
        tokens: Tokens trained on in the current epoch.
        best_score: Score on dev of the best epoch; None before the first, and if the best one was before a resumption.
    """

    def __init__(
        self,
        tagger: Tagger,
        sampler: BatchSampler,
        optimizer: Optimizer,
        config: TaggerConfig,
        group: DataParallelGroup,
        bf16: bool,
    ) -> None:
        self._tagger, self._sampler, self._optimizer, self._config = tagger, sampler, optimizer, config
        self._group, self._bf16 = group, bf16
        self.history: list[Epoch] = []
        self.best_score: Score | None = None
        self._best_values: list[Tensor] = []
        self._loss_sum, self.tokens, self._seconds = 0.0, 0, 0.0  # of this epoch
        heads = [{id(weight) for weight in corpus.head.parameters()} for corpus in sampler.corpora]
        self._learning = [  # for a batch of each corpus: everything but the heads of the others
            [p for p in optimizer.parameters if not any(id(p) in head for head in heads if head is not own)]
            for own in heads
        ]

    def run(
        self,
        dev: Sequence[Labelled],
        callback: Callback,
        patience: int | None = None,
        save: Callable[[TrainingLoop, bool], object] = lambda loop, now: None,
    ) -> tuple[Epoch, bool]:
        """Train to the end, or until `patience` epochs in a row were not better than the best, or `callback.stop`.

        Args:
            dev: Sentences to score on.
            callback: Its methods are called.
            patience: Epochs; None never stops early.
            save: Called after each step with False, after the first epoch and at the end with True: save now.

        Returns:
            The best epoch, whose weights the model then has, and whether training came to its end. Where not even one
            epoch did, the "best epoch" is what there is of the first, number 0.
        """
        while not (ended := len(self.history) == self._sampler.epochs or self._stalled(patience)) and not callback.stop:
            self._epoch(dev, callback, save)
        save(self, True)
        if not self.history:
            self._finish_epoch(dev, number=0)
        with torch.no_grad():
            for parameter, value in zip(self._optimizer.parameters, self._best_values, strict=True):
                parameter.copy_(value)
        self._subtract_o_bias()
        self._tagger.model.eval()
        return _best(self.history), ended

    def _stalled(self, patience: int | None) -> bool:
        if patience is None or not self.history:
            return False
        return len(self.history) - _best(self.history).number >= patience

    def _epoch(self, dev: Sequence[Labelled], callback: Callback, save: Callable[[TrainingLoop, bool], object]) -> None:
        self._tagger.model.train()
        if not self.tokens:  # else this epoch was interrupted, and the rest of its batches is left
            self._sampler.start_epoch(len(self.history))
        while self._sampler.left:
            began = time.perf_counter()
            loss, tokens = self._step(*self._sampler.next_batch())
            if not math.isfinite(loss):
                raise FrostlineError(
                    f"train: the loss is {loss} in step {self._optimizer.steps_done} of {self._optimizer.steps}. "
                    f"Values are not finite, or grew too far: pass TaggerConfig(learning_rate=...) below "
                    f"{self._config.learning_rate}."
                )
            self._loss_sum += loss * tokens
            self.tokens += tokens
            self._seconds += time.perf_counter() - began
            save(self, False)
            callback.batch(tokens)
            if callback.stop and self._sampler.left:
                return
        epoch = self._finish_epoch(dev, len(self.history) + 1)
        if len(self.history) == 1:  # else a run that is killed in the first minute would leave nothing
            save(self, True)
        callback.epoch(epoch)

    def _finish_epoch(self, dev: Sequence[Labelled], number: int) -> Epoch:
        with self._optimizer.ema.applied():
            self._subtract_o_bias()
            score = self._tagger.evaluate(dev)
        epoch = Epoch(number, self._loss_sum / max(1, self.tokens), score.f1, self._seconds, self.tokens)
        self.history.append(epoch)
        self._loss_sum, self.tokens, self._seconds = 0.0, 0, 0.0
        if epoch is _best(self.history):
            self._best_values, self.best_score = [value.clone() for value in self._optimizer.ema.values], score
        return epoch

    @torch.no_grad()
    def _subtract_o_bias(self) -> None:
        """Lower the logit of O, the first tag, which training leaves too high for the best F1."""
        self._tagger.model.head.linear.bias[0] -= self._config.o_bias

    def _step(self, corpus: int, whole: Batch) -> tuple[float, int]:
        """Learn from one batch of a corpus; return its mean loss, and how many tokens it has."""
        head, learning, group = self._sampler.corpora[corpus].head, self._learning[corpus], self._group
        weights = group.part(loss_weights(whole.tags, self._config.by_sentence))
        batch = whole.map(group.part).to(self._tagger.device)
        group.seed_dropout(self._sampler.seed, self._optimizer.steps_done)
        loss = torch.zeros((), device=self._tagger.device)
        self._optimizer.zero_grad()
        if len(batch.rows):
            function = partial(_loss, self._tagger.model, head, batch, weights.to(self._tagger.device), self._bf16)
            epsilon, embed = self._config.adversarial, self._tagger.model.embed
            loss = adversarial.loss(function, embed, epsilon=epsilon) if epsilon else function()
            loss.backward()
        loss = group.sum_gradients(loss, learning)
        self._optimizer.step(learning)
        return float(loss.detach()), int(whole.lengths.sum())

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor that a step reads and changes, by name; not copies."""
        best = {f"best.{index}": value for index, value in enumerate(self._best_values)}
        generators = {"sampler": self._sampler.state(), "dropout": torch.get_rng_state()}
        return self._optimizer.tensors() | best | generators

    def progress(self) -> dict[str, Any]:
        """Return what else is needed to continue, as plain values for JSON."""
        return {
            "history": [asdict(epoch) for epoch in self.history],
            "steps": self._optimizer.steps_done,
            "left": self._sampler.left,
            "epoch": [self._loss_sum, self.tokens, self._seconds],
        }

    def restore(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Continue from where `tensors` and `progress` were taken: later steps are those of an uninterrupted run.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: Something is missing, or of another kind or shape.
        """
        self.history = [Epoch(**epoch) for epoch in progress["history"]]
        self._optimizer.ema.steps = int(progress["steps"])
        loss_sum, tokens, seconds = progress["epoch"]
        self._loss_sum, self.tokens, self._seconds = float(loss_sum), int(tokens), float(seconds)
        if self.history:
            self._best_values = [torch.empty_like(value) for value in self._optimizer.ema.values]
        self._sampler.restore(tensors["sampler"], progress["left"])
        for name, target in self.tensors().items():
            if tensors[name].shape != target.shape or tensors[name].dtype != target.dtype:
                raise ValueError(f"{name} is not {target.dtype} of shape {tuple(target.shape)}")
            target.copy_(tensors[name])
        torch.set_rng_state(tensors["dropout"])


def _loss(model: LSTMTagger, head: Head, batch: Batch, weights: Tensor, bf16: bool) -> Tensor:
    with precision(weights.device, bf16):
        features = model.read(batch.rows, batch.shapes, batch.lengths, batch.spellings)
        losses = head.loss(features, batch.tags, batch.lengths)
    return (losses * weights).sum()


def _best(history: list[Epoch]) -> Epoch:
    return max(history, key=lambda epoch: (epoch.dev_f1, -epoch.loss))
