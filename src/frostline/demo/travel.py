"""Which words moved, how far, in which direction, and who lives next door before and after.

Letters used for shapes in this file:
    V  rows of the table          D  width of a row
    R  rows that learn            N  rows asked about
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from frostline.tagger import Sentence, TrainingRun
from frostline.tagger.data.vocabulary import FIRST

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Journey(NamedTuple):
    """The table before and after, and the map of it.

    `start` and `end` have shape (V, D), `start_map` and `end_map` shape (V, 2). `learned` holds the R rows of missing
    words and `code` says of each whether most of its occurrences in training are code, shape (R,). `heard` holds the
    rows of all words that training saw. Row `FIRST + i` belongs to `words[i]`.
    """

    words: list[str]
    start: Floats
    end: Floats
    start_map: Floats
    end_map: Floats
    learned: Ints
    code: npt.NDArray[np.bool_]
    heard: Ints

    @property
    def moved(self) -> Floats:
        """How far each learned row moved, shape (R,)."""
        return lengths(self.end[self.learned] - self.start[self.learned])

    def sides(self) -> tuple[float, float]:
        """The share of code words that moved right on the map, and of the others that moved left (0 if none)."""
        right = self.end_map[self.learned, 0] > self.start_map[self.learned, 0]
        return (
            float(right[self.code].sum() / max(self.code.sum(), 1)),
            float((~right)[~self.code].sum() / max((~self.code).sum(), 1)),
        )


def journey(run: TrainingRun, end: Floats, train: Iterable[Sentence]) -> Journey:
    """Gather what a run did to its missing words.

    Args:
        run: A training run under `learn="missing"`.
        end: Its table after training, shape (V, D).
        train: The labelled sentences it learned from.
    """
    start, vocabulary = run.start.numpy(), run.tagger.vocabulary
    counts: Counter[int] = Counter()
    code: Counter[int] = Counter()
    for sentence in train:
        for token, tag in zip(sentence.tokens, sentence.tags, strict=True):
            counts[vocabulary.row(token)] += 1
            code[vocabulary.row(token)] += tag != "O"
    learned = np.arange(FIRST, FIRST + vocabulary.missing)
    is_code = np.array([2 * code[row] > counts[row] for row in learned.tolist()], dtype=np.bool_)
    plane = plane_of_movement(start[learned], end[learned])
    steps = (end[learned] - start[learned]) @ plane[:, 0]
    if is_code.any() and not is_code.all() and steps[is_code].mean() < steps[~is_code].mean():
        plane[:, 0] *= -1  # the sign of a direction is free: let code words go right
    heard = np.array(sorted(row for row in counts if row >= FIRST), dtype=np.int64)
    return Journey(list(vocabulary.words), start, end, start @ plane, end @ plane, learned, is_code, heard)


def lengths(vectors: Floats) -> Floats:
    """The length of each row, shape (N,)."""
    return np.asarray(np.linalg.norm(vectors, axis=1), dtype=np.float32)


def nearest(table: Floats, row: int, among: Ints, count: int) -> list[int]:
    """The rows of `among` that point most like `row` (cosine), the nearest first, `row` itself left out.

    Example:
        >>> table = np.array([[1, 0], [0, 1], [2, 0.1], [1, 1]], dtype=np.float32)
        >>> nearest(table, 0, np.arange(4), count=2)
        [2, 3]
    """
    likeness = table[among] @ table[row] / np.maximum(lengths(table[among]), 1e-12)
    order = among[np.argsort(-likeness, kind="stable")]
    return [int(other) for other in order if other != row][:count]


def plane_of_movement(start: Floats, end: Floats) -> Floats:
    """The two directions, at right angles, along which rows moved most; every row that moved has the same say.

    Args:
        start: Rows before, shape (R, D), R and D 2 or more.
        end: The same rows after.

    Returns:
        A plane of shape (D, 2). The table times it is a map on which a row that did not move stands still exactly.

    Example:
        >>> start = np.zeros((3, 3), dtype=np.float32)
        >>> end = np.array([[0, 5, 0], [0, -1, 0], [0, 0, 1]], dtype=np.float32)
        >>> abs(plane_of_movement(start, end)).T
        array([[0., 1., 0.],
               [0., 0., 1.]], dtype=float32)
    """
    steps = (end - start).astype(np.float64)
    steps /= np.maximum(np.linalg.norm(steps, axis=1, keepdims=True), 1e-12)
    _, _, directions = np.linalg.svd(steps, full_matrices=False)
    return np.ascontiguousarray(directions[:2].T, dtype=np.float32)
