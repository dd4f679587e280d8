"""Precision, recall and F1 of entities by exact match.

The idea: an entity is (type, first token, one past the last token), and it counts when all three agree. How invalid
tags are read is conlleval's rule (see `conlleval.py`): an I-type that continues nothing starts an entity.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from frostline.printing import text_table
from frostline.tagger.scoring.conlleval import EntityCounts


@dataclass(frozen=True)
class Score:
    """Counts of entities and of tokens, and the fractions (0 to 1) made of them; 0 / 0 counts as 0.

    Args:
        correct: Entities found in both, the predicted tags and the gold ones.
        predicted: Entities found in the predicted tags.
        gold: Entities found in the gold tags.
        per_type: The same for each type, in alphabetical order; empty in the score of one type.
        tokens: How many tokens there are; 0 in the score of one type.
        right: Tokens whose predicted tag is the gold one; 0 in the score of one type.
    """

    correct: int
    predicted: int
    gold: int
    per_type: dict[str, Score] = field(default_factory=dict)
    tokens: int = 0
    right: int = 0

    @classmethod
    def from_counts(cls, counts: EntityCounts) -> Score:
        """Return the score of what was counted."""
        types = sorted(counts.gold.keys() | counts.predicted.keys())
        per_type = {kind: cls(counts.correct[kind], counts.predicted[kind], counts.gold[kind]) for kind in types}
        correct, predicted, gold = (part.total() for part in (counts.correct, counts.predicted, counts.gold))
        return cls(correct, predicted, gold, per_type, counts.tokens, counts.right)

    @property
    def precision(self) -> float:
        """Share of the predicted entities that are right."""
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of the gold entities that were found."""
        return self.correct / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.correct / (self.predicted + self.gold) if self.correct else 0.0

    @property
    def accuracy(self) -> float:
        """Share of the tokens whose tag is right, O included: high wherever entities are rare."""
        return self.right / self.tokens if self.tokens else 0.0

    def __str__(self) -> str:
        """Return a table: a line for each type, then one for all."""
        rows = [("type", "precision", "recall", "F1", "gold", "found")]
        for name, part in [*self.per_type.items(), ("all", self)]:
            rows.append(
                (
                    name,
                    f"{part.precision:.1%}",
                    f"{part.recall:.1%}",
                    f"{part.f1:.1%}",
                    f"{part.gold:,}",
                    f"{part.predicted:,}",
                )
            )
        return text_table(rows, right=range(1, 6), total=True)

    def conlleval(self) -> str:
        """Return the figures as the script conlleval prints them, to the last space."""
        lines = [
            f"processed {self.tokens} tokens with {self.gold} phrases; "
            f"found: {self.predicted} phrases; correct: {self.correct}.",
            f"accuracy: {100 * self.right / max(self.tokens, 1):6.2f}%; {self._percents()}",
        ]
        for kind, part in self.per_type.items():
            padded = " " * (17 - len(kind.encode())) + kind  # the script counts bytes
            times = 2 if not kind and part.gold and part.predicted else 1  # it lists an empty type once for each side
            lines += [f"{padded}: {part._percents()}  {part.predicted}"] * times
        return "\n".join(lines)

    def _percents(self) -> str:
        precision = 100 * self.correct / max(self.predicted, 1)
        recall = 100 * self.correct / max(self.gold, 1)
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        return f"precision: {precision:6.2f}%; recall: {recall:6.2f}%; FB1: {f1:6.2f}"

    def to_dict(self) -> dict[str, object]:
        """Return fractions under the names of the metric seqeval in the library evaluate.

        `overall_precision`, `overall_recall`, `overall_f1`, `overall_accuracy`, and for each type a dictionary of
        `precision`, `recall`, `f1` and `number` (gold entities), under the type's name.
        """
        per_type: dict[str, object] = {
            kind: {"precision": part.precision, "recall": part.recall, "f1": part.f1, "number": part.gold}
            for kind, part in self.per_type.items()
        }
        overall = {f"overall_{name}": getattr(self, name) for name in ("precision", "recall", "f1", "accuracy")}
        return per_type | overall


def score(gold: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]]) -> Score:
    """Compare predicted tags with gold tags, sentence by sentence.

    Args:
        gold: The right tags of each sentence.
        predicted: The tags to judge: as many sentences, each of the same length.

    Returns:
        A `Score` over all types, with one for each type that occurs on either side.

    Raises:
        ValueError: the numbers of sentences, or the lengths of a sentence, differ.

    Example:
        >>> score([["B-a", "O", "B-b"]], [["B-a", "O", "O"]]).recall
        0.5
    """
    counts = EntityCounts()
    for index, (right, guess) in enumerate(zip(gold, predicted, strict=True)):
        if len(right) != len(guess):
            raise ValueError(f"predicted: sentence {index} has {len(guess)} tags, its gold tags are {len(right)}.")
        for pair in zip(right, guess, strict=True):
            counts.token(*pair)
        counts.boundary()
    return Score.from_counts(counts.finish())
