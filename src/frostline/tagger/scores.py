"""Entity precision, recall and F1 by exact match.

The idea: an entity is (type, first token, one past the last token), and it counts when all three agree. Tags are BIO;
an illegal sequence is read the way the field's scorers read it: an I-type that continues nothing starts an entity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Span(NamedTuple):
    """One entity: its type and the tokens start, start + 1, ..., end - 1."""

    type: str
    start: int
    end: int


@dataclass(frozen=True)
class Score:
    """Counts of entities, and the fractions (0 to 1) made of them; a fraction of nothing is 0."""

    correct: int
    predicted: int
    gold: int
    per_type: dict[str, Score] = field(default_factory=dict)

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

    def __str__(self) -> str:
        """Return a table: a line for each type, then one for all."""
        width = max([len("type"), *map(len, self.per_type)])
        lines = [f"{'type':<{width}}  precision  recall      F1    gold  found"]
        for name, part in [*self.per_type.items(), ("all", self)]:
            lines.append(
                f"{name:<{width}}  {100 * part.precision:8.1f}%  {100 * part.recall:5.1f}%  {100 * part.f1:5.1f}%"
                f"  {part.gold:6,}  {part.predicted:5,}"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """Return precision, recall, f1 (fractions), the three counts and, where there are types, `per_type`."""
        plain: dict[str, object] = {name: getattr(self, name) for name in ("precision", "recall", "f1")}
        plain |= {"correct": self.correct, "predicted": self.predicted, "gold": self.gold}
        if self.per_type:
            plain["per_type"] = {name: score.to_dict() for name, score in self.per_type.items()}
        return plain


def spans(tags: Sequence[str]) -> list[Span]:
    """Return the entities of one sentence, in order.

    Args:
        tags: O, B-type or I-type for each token.

    Example:
        >>> spans(["B-person", "I-person", "O", "I-place"])
        [Span(type='person', start=0, end=2), Span(type='place', start=3, end=4)]

    Source: conlleval, and seqeval's default mode.
    """
    found: list[Span] = []
    open_type = None
    start = 0
    for position, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        if open_type is not None and (prefix != "I" or kind != open_type):
            found.append(Span(open_type, start, position))
            open_type = None
        if prefix != "O" and open_type is None:
            open_type, start = kind, position
    return found


def score(gold: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]]) -> Score:
    """Compare predicted tags with gold tags, sentence by sentence.

    Args:
        gold: The right tags of each sentence.
        predicted: The tags to judge: as many sentences, each of the same length.

    Returns:
        A `Score` over all types, with one `Score` for each type that occurs on either side, in alphabetical order.

    Raises:
        ValueError: another number of sentences, or a sentence of another length.

    Example:
        >>> score([["B-a", "O", "B-b"]], [["B-a", "O", "O"]]).recall
        0.5
    """
    correct: Counter[str] = Counter()
    of_gold: Counter[str] = Counter()
    of_predicted: Counter[str] = Counter()
    for number, (right, guess) in enumerate(zip(gold, predicted, strict=True)):
        if len(right) != len(guess):
            raise ValueError(f"predicted: sentence {number} has {len(guess)} tags, its gold tags are {len(right)}.")
        right_spans, guess_spans = set(spans(right)), set(spans(guess))
        of_gold.update(span.type for span in right_spans)
        of_predicted.update(span.type for span in guess_spans)
        correct.update(span.type for span in right_spans & guess_spans)
    types = sorted(of_gold.keys() | of_predicted.keys())
    return Score(
        correct.total(),
        of_predicted.total(),
        of_gold.total(),
        {name: Score(correct[name], of_predicted[name], of_gold[name]) for name in types},
    )
