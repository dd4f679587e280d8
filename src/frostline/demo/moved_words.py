"""Which words moved, how far, and in which direction: the table of word vectors before and after training, and its map.

Letters used for shapes in this file:
    V  rows of the table          D  width of a row
    R  rows that learn
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from frostline.report.charts import plane_of_movement
from frostline.tagger import Sentence, TrainingRun
from frostline.tagger.data.vocabulary import FIRST_WORD

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class MovedWords(NamedTuple):
    """The table before and after training, and its map.

    Attributes:
        words: The words of the vocabulary; row `FIRST_WORD + i` belongs to `words[i]`.
        before: The table before training, shape (V, D).
        after: The table after training, shape (V, D).
        map_before: The position of each row on the map, shape (V, 2).
        map_after: The same after training; a frozen row has the same position.
        learned: Rows of missing words, which learned, shape (R,).
        is_code: Whether most occurrences of each of them in the training sentences are code, shape (R,).
        seen: Rows of all words in the training sentences.
    """

    words: list[str]
    before: Floats
    after: Floats
    map_before: Floats
    map_after: Floats
    learned: Ints
    is_code: npt.NDArray[np.bool_]
    seen: Ints

    @classmethod
    def from_run(cls, run: TrainingRun, sentences: Iterable[Sentence]) -> MovedWords:
        """Return how the missing words of a run with `learn="missing"` moved.

        Args:
            run: The run.
            sentences: The labelled sentences it learned from.
        """
        before, after = run.initial_table.to_tensor().numpy(), run.tagger.model.embed.weight.detach().clone().numpy()
        vocabulary = run.tagger.vocabulary
        counts: Counter[int] = Counter()
        code_counts: Counter[int] = Counter()
        for sentence in sentences:
            for token, tag in zip(sentence.tokens, sentence.tags, strict=True):
                counts[vocabulary.row(token)] += 1
                code_counts[vocabulary.row(token)] += tag != "O"
        learned = np.arange(FIRST_WORD, FIRST_WORD + vocabulary.missing)
        is_code = np.array([2 * code_counts[row] > counts[row] for row in learned.tolist()], dtype=np.bool_)
        plane64 = plane_of_movement(before[learned].astype(np.float64), after[learned].astype(np.float64))
        plane: Floats = plane64.astype(np.float32)
        to_the_right = (after[learned] - before[learned]) @ plane[:, 0]
        if is_code.any() and not is_code.all() and to_the_right[is_code].mean() < to_the_right[~is_code].mean():
            plane[:, 0] *= -1  # the sign of a direction is free: let code words move to the right
        seen = np.array(sorted(row for row in counts if row >= FIRST_WORD), dtype=np.int64)
        words = list(vocabulary.words)
        return cls(words, before, after, before @ plane, after @ plane, learned, is_code, seen)

    @property
    def distances(self) -> Floats:
        """How far each learned row moved, shape (R,)."""
        return np.asarray(np.linalg.norm(self.after[self.learned] - self.before[self.learned], axis=1))

    def sides(self) -> tuple[float, float]:
        """Return the share of code words that moved right on the map, and of the others that moved left (0 if none)."""
        right = self.map_after[self.learned, 0] > self.map_before[self.learned, 0]
        return (
            float(right[self.is_code].sum() / max(self.is_code.sum(), 1)),
            float((~right)[~self.is_code].sum() / max((~self.is_code).sum(), 1)),
        )
