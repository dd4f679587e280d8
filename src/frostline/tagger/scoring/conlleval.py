"""Count entities as conlleval counts them, whatever the tags.

The idea: a state machine that reads one gold and one predicted tag at a time. On valid tags it counts the entities that
agree in type, first and last token; on invalid ones it does what the script does, so that its figures can be compared
with published ones. A tag is a letter, a dash and a type; dashes after the first belong to the type.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

_OUTSIDE = ("O", "")
_STARTS = {("B", "B"), ("I", "B"), ("O", "B"), ("O", "I"), ("E", "E"), ("E", "I"), ("O", "E")}
_ENDS = {("B", "B"), ("B", "O"), ("I", "B"), ("I", "O"), ("E", "E"), ("E", "I"), ("E", "O")}

Tag = tuple[str, str]  # letter and type


class EntityCounts:
    """Counts of what was read so far. Call `token` for each token, `boundary` between sentences, then `finish`.

    Attributes:
        tokens, right: Tokens read, and those whose two tags are the same.
        correct, predicted, gold: Entities of each type: found in both, in the predicted tags, in the gold ones.

    Example:
        >>> counts = EntityCounts()
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
        """Read the end of a sentence, which does not count as a token."""
        self._step(_OUTSIDE, _OUTSIDE)

    def finish(self) -> EntityCounts:
        """Count an entity that ends with the last token, and return the counts."""
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


# The rules of the script, its dots and brackets included: they occur in the output of older taggers.


@lru_cache(maxsize=4096)
def _starts(last: Tag, tag: Tag) -> bool:
    changes = tag[0] not in ("O", ".") and last[1] != tag[1]
    return changes or tag[0] in ("[", "]") or (last[0], tag[0]) in _STARTS


@lru_cache(maxsize=4096)
def _ends(last: Tag, tag: Tag) -> bool:
    changes = last[0] not in ("O", ".") and last[1] != tag[1]
    return changes or last[0] in ("[", "]") or (last[0], tag[0]) in _ENDS
