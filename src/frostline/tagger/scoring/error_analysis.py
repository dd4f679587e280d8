"""What a tagger gets wrong: pairs of gold and predicted entities that overlap, and those that stand alone.

The idea: each gold entity is paired with the predicted one that shares most tokens with it; one without a partner was
missed, and a predicted entity that touches no gold one was invented. So every error has one name and is counted once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from frostline.tagger.data.tags import Span, spans
from frostline.tagger.scoring.scores import Score

NONE = ""  # the type of a partner that is not there


class Pair(NamedTuple):
    """A gold entity and its predicted partner; where one is not there its type and text are empty.

    Args:
        sentence: Number of the sentence, from 0.
        gold, predicted: The types.
        gold_text, predicted_text: The tokens, joined by blanks.
        tokens: How many the gold entity has; of an invented one, the predicted.
        same_place: Both have the same tokens.
    """

    sentence: int
    gold: str
    predicted: str
    gold_text: str
    predicted_text: str
    tokens: int
    same_place: bool

    @property
    def kind(self) -> str:
        """Return right, type, bounds, both (of the two), missed or invented."""
        if self.predicted == NONE:
            return "missed"
        if self.gold == NONE:
            return "invented"
        if self.gold == self.predicted:
            return "right" if self.same_place else "bounds"
        return "type" if self.same_place else "both"

    def __str__(self) -> str:
        if self.kind == "invented":
            return f"invented  {self.predicted}: {self.predicted_text!r}"
        found = {"missed": "", "type": f", found as {self.predicted}", "bounds": f", found {self.predicted_text!r}"}
        both = f", found {self.predicted_text!r} as {self.predicted}"
        return f"{self.kind:<8}  {self.gold}: {self.gold_text!r}{found.get(self.kind, both)}"


@dataclass(frozen=True)
class Errors:
    """All pairs of a text, in order."""

    pairs: Sequence[Pair]

    @property
    def kinds(self) -> Counter[str]:
        """How many errors there are of each kind."""
        return Counter(pair.kind for pair in self.pairs if pair.kind != "right")

    @property
    def confusion(self) -> Counter[tuple[str, str]]:
        """How many pairs there are of each (gold type, predicted type); the empty type stands for none."""
        return Counter((pair.gold, pair.predicted) for pair in self.pairs)

    def frequent(self, most: int) -> list[tuple[int, Pair]]:
        """Return the errors made most often, as (how often, the first of them); text counts as written."""
        groups: dict[tuple[str, ...], list[Pair]] = {}
        for pair in self._wrong():
            groups.setdefault((pair.gold, pair.predicted, pair.gold_text, pair.predicted_text), []).append(pair)
        ordered = sorted(groups.values(), key=len, reverse=True)
        return [(len(group), group[0]) for group in ordered[:most]]

    def longest(self, most: int) -> list[Pair]:
        """Return the errors about the longest entities."""
        return sorted(self._wrong(), key=lambda pair: pair.tokens, reverse=True)[:most]

    def _wrong(self) -> Iterator[Pair]:
        return (pair for pair in self.pairs if pair.kind != "right")


def analyse(
    tokens: Iterable[Sequence[str]], gold: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]]
) -> Errors:
    """Pair the entities of a text.

    Args:
        tokens: The tokens of each sentence.
        gold: Its right tags, in the scheme IOB2.
        predicted: Its predicted tags.

    Example:
        >>> found = analyse([["New", "York", "is", "Oz"]], [["B-a", "I-a", "O", "O"]], [["O", "B-a", "O", "B-b"]])
        >>> [str(pair) for pair in found.pairs]
        ["bounds    a: 'New York', found 'York'", "invented  b: 'Oz'"]
    """
    pairs: list[Pair] = []
    for number, (words, right, guess) in enumerate(zip(tokens, gold, predicted, strict=True)):
        pairs += _pairs(number, words, spans(right), spans(guess))
    return Errors(pairs)


def surface_score(
    tokens: Iterable[Sequence[str]], gold: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]]
) -> Score:
    """Score the set of (type, text) that a tagger finds: an entity counts once, however often it occurs.

    Args:
        tokens: The tokens of each sentence; the text of an entity is as written, its tokens joined by blanks.
        gold: Its right tags, in the scheme IOB2.
        predicted: Its predicted tags.

    Example:
        >>> surface_score([["Oz", "Oz"]], [["B-a", "B-a"]], [["B-a", "O"]]).f1
        1.0

    Source: the second measure of the shared task WNUT-17 (Derczynski et al. 2017), for how many new names are found.
    """
    right: set[tuple[str, str]] = set()
    found: set[tuple[str, str]] = set()
    for words, gold_tags, tags in zip(tokens, gold, predicted, strict=True):
        right |= {(span.type, _text(words, span)) for span in spans(gold_tags)}
        found |= {(span.type, _text(words, span)) for span in spans(tags)}
    both, found_types, right_types = (Counter(kind for kind, _ in part) for part in (right & found, found, right))
    types = sorted(found_types.keys() | right_types.keys())
    per_type = {kind: Score(both[kind], found_types[kind], right_types[kind]) for kind in types}
    return Score(len(right & found), len(found), len(right), per_type)


def unknown_types(known: Iterable[str], gold: Iterable[Sequence[str]]) -> Counter[str]:
    """Return the entities whose type none of the `known` tags has, counted by type: no tagger of them can find these.

    Example:
        >>> unknown_types(["O", "B-a", "I-a"], [["B-a", "B-b"]])
        Counter({'b': 1})
    """
    types = {tag[2:] for tag in known}
    return Counter(span.type for tags in gold for span in spans(tags) if span.type not in types)


def _pairs(number: int, words: Sequence[str], gold: list[Span], predicted: list[Span]) -> Iterator[Pair]:
    touched: set[Span] = set()
    for right in gold:
        near = [guess for guess in predicted if _shared(right, guess)]
        touched.update(near)
        partner = max(near, key=lambda guess: (guess[1:] == right[1:], _shared(right, guess)), default=None)
        text = _text(words, partner) if partner else ""
        kind = partner.type if partner else NONE
        same = partner is not None and partner[1:] == right[1:]
        yield Pair(number, right.type, kind, _text(words, right), text, right.end - right.start, same)
    for guess in predicted:
        if guess not in touched:
            yield Pair(number, NONE, guess.type, "", _text(words, guess), guess.end - guess.start, False)


def _shared(one: Span, other: Span) -> int:
    return max(0, min(one.end, other.end) - max(one.start, other.start))


def _text(words: Sequence[str], span: Span) -> str:
    return " ".join(words[span.start : span.end])
