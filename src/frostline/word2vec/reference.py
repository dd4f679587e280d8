"""Training in plain torch: the readable truth of kernel.cpp, and what runs where there is no compiler.

Letters used for shapes in this file:
    n  words of a paragraph       C  words of the widest context, 2 x window
    B  targets of a paragraph     K  negatives of each        D  dimension        W  words of the text

Batches, samples and the order of additions are those of the kernel. The rows that a paragraph uses are copied, one copy
for each use, and autograd takes the gradient of its loss with respect to the copies. When all paragraphs of a batch are
done, the gradients are added to the rows that learn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from frostline.errors import FrostlineError
from frostline.gates import scale_gradient
from frostline.word2vec import sampling
from frostline.word2vec.compiled import Position
from frostline.word2vec.encode import Ids
from frostline.word2vec.problem import Mask, Problem, Table


class Paragraph(NamedTuple):
    """A paragraph of which n words are read, and the B targets in it."""

    words: Tensor  # (n,), rows of the input table
    contexts: Tensor  # (B, C), indices in `words`, -1 where there is none; for skip-gram (B, 1)
    targets: Tensor  # (B,), rows of the output table
    negatives: Tensor  # (B, K)


def train(problem: Problem, at: Position, words: int) -> bool:
    """Do the same as the kernel; see `step.train`."""
    until = at.words_done + words
    with _one_thread():
        while at.words_done < until:
            rate = problem.rate(at.words_done)
            batch = next_batch(problem, at)
            if not batch:
                return True
            changes = [_change(problem, paragraph) for paragraph in batch if len(paragraph.targets)]
            for change in changes:
                _add(problem.input, problem.input_learns, change.words, change.input * -rate)
                _add(problem.output, problem.output_learns, change.output_rows, change.output * -rate)
                at.loss += change.loss
                at.targets += change.targets
    return False


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread of torch: with several, sums may depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def next_batch(problem: Problem, at: Position) -> list[Paragraph]:
    """Return the paragraphs of the batch that begins at `at`, which moves behind it; none at the end of the text."""
    ids, room, batch, words = problem.corpus.ids, problem.batch_words, [], 0
    while True:
        while at.token < len(ids) and ids[at.token] < 0:
            at.token += 1
        some = ids[at.token : at.token + min(sampling.PARAGRAPH, room)]
        size = int(np.argmin(some)) if len(some) and some.min() < 0 else len(some)  # up to the end of the line
        if not size or words + size > room:
            break
        if some[:size].max() >= len(problem.corpus.words):
            raise FrostlineError("text.ids: holds an id without a row; it is damaged. Train from the start.")
        batch.append(_paragraph(problem, sampling.key_of(at.key, at.paragraph), some[:size]))
        words += size
        at.token += size
        at.paragraph += 1
    at.words_done += words
    return batch


def _paragraph(problem: Problem, key: int, words: Ids) -> Paragraph:
    """Draw what is random in a paragraph."""
    settings, per_word = problem.settings, problem.draws_per_word
    read, widths, counters = sampling.draws(key, words, problem.keep, settings.window, per_word)
    offsets = np.array([*range(-settings.window, 0), *range(1, settings.window + 1)])
    contexts = np.arange(len(read))[:, None] + offsets
    inside = (abs(offsets) <= widths[:, None]) & (contexts >= 0) & (contexts < len(read))
    contexts = np.where(inside, contexts, -1)
    targets = read
    if settings.skip_gram:
        centres, slots = np.nonzero(inside)
        contexts, targets = contexts[centres, slots][:, None], read[centres]
        counters = counters[centres] + (offsets[slots] + settings.window) * settings.negatives
    elif len(read) < 2:
        contexts, targets, counters = contexts[:0], targets[:0], counters[:0]  # a word alone has no context
    drawn = sampling.negatives(key, counters, settings.negatives, problem.alias)
    return Paragraph(*(torch.from_numpy(np.ascontiguousarray(x)) for x in (read, contexts, targets, drawn)))


class _Change(NamedTuple):
    words: Tensor  # (n,), rows of the input table
    input: Tensor  # (n, D), their gradients
    output_rows: Tensor  # (B (1 + K),), or (W,)
    output: Tensor
    loss: float
    targets: int


def _change(problem: Problem, paragraph: Paragraph) -> _Change:
    """Return the gradients of the loss of a paragraph."""
    words, contexts, targets, negatives = paragraph
    input = _copies(problem.input, words)
    found = contexts >= 0
    count = found.sum(dim=1, keepdim=True)
    hidden = (input[contexts.clamp(min=0)] * found.unsqueeze(2)).sum(dim=1) / count  # (B, D)
    # word2vec gives each word of the context the gradient of the mean, undivided.
    hidden = scale_gradient(hidden, count.to(hidden.dtype))
    if problem.settings.softmax:
        rows = torch.arange(len(problem.corpus.words))
        output = _copies(problem.output, rows)
        loss = F.cross_entropy(hidden @ output.T, targets, reduction="sum")
    else:
        rows = torch.cat([targets.unsqueeze(1), negatives], dim=1)
        output = _copies(problem.output, rows.flatten())
        scores = (output.view(*rows.shape, -1) * hidden.unsqueeze(1)).sum(dim=2)  # (B, 1 + K)
        missed = F.softplus(scores[:, 1:]) * (negatives != targets.unsqueeze(1))  # the target itself is no negative
        loss = F.softplus(-scores[:, 0]).sum() + missed.sum()
    loss.backward()
    assert input.grad is not None
    assert output.grad is not None
    return _Change(words, input.grad, rows.flatten(), output.grad, loss.item(), len(targets))


def _copies(table: Table, rows: Tensor) -> Tensor:
    """Return copies of rows, a leaf that takes a gradient."""
    return torch.from_numpy(table[rows.numpy()]).requires_grad_()


def _add(table: Table, learns: Mask, rows: Tensor, changes: Tensor) -> None:
    """Add changes, in their order, to the rows that learn."""
    chosen = torch.from_numpy(learns)[rows] != 0
    torch.from_numpy(table).index_add_(0, rows[chosen], changes[chosen])
