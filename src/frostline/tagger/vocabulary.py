"""Which row of the table a token reads, and what its letters look like.

The idea: keep every pretrained word, not only those that training saw, so that a word met later still has its vector.

    row 0             padding: zero, never learns
    row 1             <unk>: any token without a row; learns, because training now and then hides a word behind it
    rows 2 ...        training words that the vectors miss; they learn
    the rows after    every pretrained word, in the order of the vectors; fixed

A token is looked up as it is written, then in lower case. What lower case hides comes back as its shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from frostline.tagger.lookups import having
from frostline.vectors import Words

PADDING, UNKNOWN, FIRST = 0, 1, 2
SHAPES = 14  # how many values `shape` has, with 0 for padding
_MET = 1 << 16  # tokens whose rows are remembered


class Vocabulary:
    """The word of each row.

    Args:
        words: The words of rows 2, 3, ..., all different, first the missing ones, then those of the vectors.
        missing: How many of `words` the vectors miss.

    Cost: the words are packed (see `frostline.vectors.Words`); the rows of tokens met lately are remembered.
    """

    def __init__(self, words: Sequence[str], missing: int) -> None:
        self.words = words if isinstance(words, Words) else Words.of(words)
        self.missing = missing
        self._met: dict[str, int] = {}

    def __len__(self) -> int:
        """Return the number of rows of the table, padding and <unk> included."""
        return FIRST + len(self.words)

    def row(self, token: str) -> int:
        """Return the row of `token`, of its lower case where it has none, or of <unk>.

        Example:
            >>> vocabulary = Vocabulary(["iPad", "the"], missing=1)
            >>> [vocabulary.row(token) for token in ["iPad", "The", "ipad"]]
            [2, 3, 1]
        """
        row = self._met.get(token)
        if row is None:
            if len(self._met) == _MET:
                self._met.clear()
            row = self._met[token] = self._find(token)
        return row

    def _find(self, token: str) -> int:
        for spelling in (token, token.lower()):
            if (place := self.words.row_of(spelling)) >= 0:
                return FIRST + place
        return UNKNOWN

    @property
    def learned(self) -> range:
        """The rows that learn when missing words do: <unk> and theirs."""
        return range(UNKNOWN, FIRST + self.missing)


@dataclass(frozen=True)
class Coverage:
    """How much of the training text the vectors have; `missing` holds the rest, the most frequent word first."""

    words: int
    tokens: int
    found_words: int
    found_tokens: int
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"the vectors have {self.found_words:,} of {self.words:,} training words "
            f"({self.found_tokens / max(self.tokens, 1):.1%} of the tokens); {len(self.missing):,} learn their own"
        )


def cover(tokens: Iterable[str], words: Sequence[str]) -> Coverage:
    """Return which of `tokens` the pretrained `words` have, as written or in lower case.

    Cost: as that of `look_up`.

    Example:
        >>> print(cover(["The", "iPad", "the"], ["the"]))
        the vectors have 2 of 3 training words (66.7% of the tokens); 1 learn their own
    """
    counts = Counter(tokens)
    known = having([*counts, *map(str.lower, counts)], words)
    missing = [word for word, _ in counts.most_common() if word not in known and word.lower() not in known]
    lost = sum(counts[word] for word in missing)
    total = counts.total()
    return Coverage(len(counts), total, len(counts) - len(missing), total - lost, tuple(missing))


@lru_cache(maxsize=1 << 16)
def shape(token: str) -> int:
    """Return what the letters of `token` look like, a number from 1 to SHAPES - 1.

    Example:
        >>> [shape(token) for token in ["word", "Word", "WORD", "iPad", "42", "@me"]]
        [8, 6, 5, 7, 4, 1]
    """
    if token.startswith("@") and len(token) > 1:
        return 1
    if token.startswith("#") and len(token) > 1:
        return 2
    if token.startswith(("http://", "https://", "www.")):
        return 3
    if any(character.isdigit() for character in token):
        return 4 if not any(character.isalpha() for character in token) else 9
    if not any(character.isalpha() for character in token):
        return 10 if token.isascii() else 11
    if token.isupper():
        return 5 if len(token) > 1 else 12
    if token[0].isupper():
        return 6 if token[1:].islower() else 13
    return 8 if token == token.lower() else 7
