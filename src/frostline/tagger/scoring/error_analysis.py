"""What a tagger gets wrong: entities with a wrong type or wrong bounds, missed ones and invented ones.

The idea: each gold entity is paired with the predicted one that shares most tokens with it; a gold entity without a
partner was missed, and a predicted entity that overlaps no gold one was invented. So every error has one kind and is
counted once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from frostline.tagger.data.tags import Span, spans
from frostline.tagger.scoring.scores import Score

_NO_PARTNER = ""  # the type where the gold or the predicted entity is missing


class Pair(NamedTuple):
    """A gold entity and its predicted partner; type and text are empty where there is none.

    Attributes:
        sentence: Index of the sentence.
        gold, predicted: The types.
        gold_text, predicted_text: The tokens, joined by spaces.
        tokens: How many tokens the gold entity has, or the predicted one if it was invented.
        same_bounds: Whether both have the same tokens.
    """

    sentence: int
    gold: str
    predicted: str
    gold_text: str
    predicted_text: str
    tokens: int
    same_bounds: bool

    @property
    def kind(self) -> str:
        """One of right, missed and invented, or what is wrong: type, bounds or both."""
        if self.predicted == _NO_PARTNER:
            return "missed"
        if self.gold == _NO_PARTNER:
            return "invented"
        if self.gold == self.predicted:
            return "right" if self.same_bounds else "bounds"
        return "type" if self.same_bounds else "both"

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
        """How many pairs there are of each (gold type, predicted type); the type of a missing partner is empty."""
        return Counter((pair.gold, pair.predicted) for pair in self.pairs)

    def confusion_table(self) -> dict[str, Any]:
        """Return `confusion` as a table of plain values, which `frostline.record.describe_run` writes.

        Returns:
            `types`, T names in alphabetical order; `rows` and `columns`, "gold" and "predicted"; `counts`, T + 1 rows
            of T + 1 counts, of which the last row is for invented entities and the last column for missed ones.

        Example:
            >>> errors = analyse([["Oz", "is"]], [["B-a", "O"]], [["B-b", "B-b"]])
            >>> errors.confusion_table()["types"], errors.confusion_table()["counts"]
            (['a', 'b'], [[0, 1, 0], [0, 0, 0], [0, 1, 0]])
        """
        counts = self.confusion
        types = sorted({kind for pair in counts for kind in pair} - {_NO_PARTNER})
        titles = [*types, _NO_PARTNER]
        table = [[counts[gold, predicted] for predicted in titles] for gold in titles]
        return {"types": types, "rows": "gold", "columns": "predicted", "counts": table}

    def frequent(self, most: int) -> list[tuple[int, Pair]]:
        """Return the most frequent errors, as (how often, the first of them); texts are compared as written."""
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
    """Pair the gold and the predicted entities of a text.

    Args:
        tokens: The tokens of each sentence.
        gold: The right tags of each sentence, in the scheme IOB2.
        predicted: The predicted tags.

    Example:
        >>> found = analyse([["New", "York", "is", "Oz"]], [["B-a", "I-a", "O", "O"]], [["O", "B-a", "O", "B-b"]])
        >>> [str(pair) for pair in found.pairs]
        ["bounds    a: 'New York', found 'York'", "invented  b: 'Oz'"]
    """
    pairs: list[Pair] = []
    for sentence, (words, right, guess) in enumerate(zip(tokens, gold, predicted, strict=True)):
        pairs += _pairs(sentence, words, spans(right), spans(guess))
    return Errors(pairs)


def surface_score(
    tokens: Iterable[Sequence[str]], gold: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]]
) -> Score:
    """Score the set of (type, text) that a tagger finds: an entity counts once, however often it occurs.

    Args:
        tokens: The tokens of each sentence; the text of an entity is its tokens as written, joined by spaces.
        gold: The right tags of each sentence, in the scheme IOB2.
        predicted: The predicted tags.

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
    """Count the gold entities of types that `known` tags lack, by type: a tagger with these tags cannot find them.

    Example:
        >>> unknown_types(["O", "B-a", "I-a"], [["B-a", "B-b"]])
        Counter({'b': 1})
    """
    types = {tag[2:] for tag in known}
    return Counter(span.type for tags in gold for span in spans(tags) if span.type not in types)


def _pairs(sentence: int, words: Sequence[str], gold: list[Span], predicted: list[Span]) -> Iterator[Pair]:
    overlapping: set[Span] = set()
    for right in gold:
        near = [guess for guess in predicted if _shared_tokens(right, guess)]
        overlapping.update(near)
        partner = max(near, key=lambda guess: (guess[1:] == right[1:], _shared_tokens(right, guess)), default=None)
        text = _text(words, partner) if partner else ""
        kind = partner.type if partner else _NO_PARTNER
        same = partner is not None and partner[1:] == right[1:]
        yield Pair(sentence, right.type, kind, _text(words, right), text, right.end - right.start, same)
    for guess in predicted:
        if guess not in overlapping:
            yield Pair(sentence, _NO_PARTNER, guess.type, "", _text(words, guess), guess.end - guess.start, False)


def _shared_tokens(span: Span, other: Span) -> int:
    return max(0, min(span.end, other.end) - max(span.start, other.start))


def _text(words: Sequence[str], span: Span) -> str:
    return " ".join(words[span.start : span.end])
