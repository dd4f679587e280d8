"""Entity precision, recall and F1 by exact match.

The idea: an entity is (type, first token, one past the last token), and it counts when all three agree. What the tags
of an illegal sequence mean is conlleval's to say (see `chunks`): an I-type that continues nothing starts an entity.

Count entities as conlleval counts them, whatever the tags.

The idea: a machine that reads one gold and one predicted tag at a time. On legal tags it counts the entities that agree
in type, first and last token; on illegal ones it does what the script does, so that its figures can be compared with
published ones. A tag is a letter, a dash and a type; dashes after the first belong to the type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache


@dataclass(frozen=True)
class Score:
    """Counts of entities and of tokens, and the fractions (0 to 1) made of them; a fraction of nothing is 0.

    Args:
        correct, predicted, gold: Entities found in both, in the predicted tags, in the gold ones.
        per_type: The same for each type, in alphabetical order; empty in the score of one type.
        tokens, right: Tokens, and those whose predicted tag is the gold one; 0 in the score of one type.
    """

    correct: int
    predicted: int
    gold: int
    per_type: dict[str, Score] = field(default_factory=dict)
    tokens: int = 0
    right: int = 0

    @classmethod
    def of(cls, counts: Counts) -> Score:
        """Return the score of all that was counted."""
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
        width = max([len("type"), *map(len, self.per_type)])
        lines = [f"{'type':<{width}}  precision  recall      F1    gold  found"]
        for name, part in [*self.per_type.items(), ("all", self)]:
            lines.append(
                f"{name:<{width}}  {100 * part.precision:8.1f}%  {100 * part.recall:5.1f}%  {100 * part.f1:5.1f}%"
                f"  {part.gold:6,}  {part.predicted:5,}"
            )
        return "\n".join(lines)

    def conlleval(self) -> str:
        """Return the figures as the script conlleval prints them, to the last blank."""
        lines = [
            f"processed {self.tokens} tokens with {self.gold} phrases; "
            f"found: {self.predicted} phrases; correct: {self.correct}.",
            f"accuracy: {100 * self.right / max(self.tokens, 1):6.2f}%; {self._percents()}",
        ]
        for kind, part in self.per_type.items():
            padded = " " * (17 - len(kind.encode())) + kind  # it counts bytes
            twice = (
                2 if not kind and part.gold and part.predicted else 1
            )  # a type without a name is listed by each side
            lines += [f"{padded}: {part._percents()}  {part.predicted}"] * twice
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
        ValueError: another number of sentences, or a sentence of another length.

    Example:
        >>> score([["B-a", "O", "B-b"]], [["B-a", "O", "O"]]).recall
        0.5
    """
    counts = Counts()
    for number, (right, guess) in enumerate(zip(gold, predicted, strict=True)):
        if len(right) != len(guess):
            raise ValueError(f"predicted: sentence {number} has {len(guess)} tags, its gold tags are {len(right)}.")
        for pair in zip(right, guess, strict=True):
            counts.token(*pair)
        counts.boundary()
    return Score.of(counts.finish())


_OUTSIDE = ("O", "")
_STARTS = {("B", "B"), ("I", "B"), ("O", "B"), ("O", "I"), ("E", "E"), ("E", "I"), ("O", "E")}
_ENDS = {("B", "B"), ("B", "O"), ("I", "B"), ("I", "O"), ("E", "E"), ("E", "I"), ("E", "O")}

Tag = tuple[str, str]  # letter and type


class Counts:
    """What was read so far. Call `token` for each token, `boundary` between sentences, then `finish`.

    Attributes:
        tokens, right: Tokens read, and those whose two tags are the same.
        correct, predicted, gold: Entities of each type: found in both, in the predicted tags, in the gold ones.

    Example:
        >>> counts = Counts()
        >>> for gold, predicted in [("B-a", "I-a"), ("I-a", "I-a"), ("O", "B-b")]:
        ...     counts.token(gold, predicted)
        >>> counts.finish().correct, counts.predicted
        (Counter({'a': 1}), Counter({'a': 1, 'b': 1}))

    Source: conlleval.pl of 2004-01-26, by Erik Tjong Kim Sang, for the shared tasks CoNLL-2000 to 2003.
    """

    def __init__(self) -> None:
        self.tokens = self.right = 0
        self.correct: Counter[str] = Counter()
        self.predicted: Counter[str] = Counter()
        self.gold: Counter[str] = Counter()
        self._agree = False  # an entity is open in both, and the same so far
        self._last: tuple[Tag, Tag] = (_OUTSIDE, _OUTSIDE)

    def token(self, gold: str, predicted: str) -> None:
        """Read the two tags of the next token."""
        pair = _parts(gold), _parts(predicted)
        self.tokens += 1
        self.right += pair[0] == pair[1]
        self._step(*pair)

    def boundary(self) -> None:
        """Read the end of a sentence, which is no token."""
        self._step(_OUTSIDE, _OUTSIDE)

    def finish(self) -> Counts:
        """Close an entity that is open to the last token, and return the counts."""
        if self._agree:
            self.correct[self._last[0][1]] += 1
            self._agree = False
        return self

    def _step(self, gold: Tag, predicted: Tag) -> None:
        last_gold, last_predicted = self._last
        self._last = gold, predicted
        if self._agree:
            ends = _ends(last_gold, gold), _ends(last_predicted, predicted)
            if all(ends) and last_gold[1] == last_predicted[1]:
                self.correct[last_gold[1]] += 1
                self._agree = False
            elif ends[0] != ends[1] or gold[1] != predicted[1]:
                self._agree = False
        starts = _starts(last_gold, gold), _starts(last_predicted, predicted)
        if all(starts) and gold[1] == predicted[1]:
            self._agree = True
        if starts[0]:
            self.gold[gold[1]] += 1
        if starts[1]:
            self.predicted[predicted[1]] += 1


@lru_cache(maxsize=4096)
def _parts(tag: str) -> Tag:
    letter, _, kind = tag.partition("-")
    return letter, kind


@lru_cache(maxsize=4096)
def _starts(last: Tag, tag: Tag) -> bool:
    changes = tag[0] not in ("O", ".") and last[1] != tag[1]
    return changes or tag[0] in ("[", "]") or (last[0], tag[0]) in _STARTS


@lru_cache(maxsize=4096)
def _ends(last: Tag, tag: Tag) -> bool:
    changes = last[0] not in ("O", ".") and last[1] != tag[1]
    return changes or last[0] in ("[", "]") or (last[0], tag[0]) in _ENDS
