"""Which row of the table a token reads, and what its letters look like.

The idea: keep every pretrained word, not only those that training saw, so that a word met later still has its vector.

    row 0             padding: zero, never learns
    row 1             <unk>: any token without a row; learns, because training now and then hides a word behind it
    rows 2 ...        training words that the vectors miss; they learn
    the rows after    every pretrained word, in the order of the vectors; fixed

A token is looked up as it is written, then in lower case. What lower case hides comes back as its shape.

How the tokens of a text find their vectors: as written, in lower case, or not at all.

The idea: most bad results come from a silent mismatch (another language, tokenization, case or encoding), and it shows
here before an hour is spent on training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

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


SUSPICIOUS = 0.6  # share of tokens with a vector below which something is wrong; tweets over GloVe reach 0.9
_SHOWN = 5


@dataclass(frozen=True)
class Lookups:
    """Tokens of a text that have a vector as `written`, only in lower case (`lowered`), or none; counted, not listed.

    `missing` holds the tokens without one, the most frequent first.
    """

    written: int
    lowered: int
    without: int
    missing: tuple[str, ...]

    @property
    def share(self) -> float:
        """Share of the tokens that have a vector, 0 to 1."""
        return (self.written + self.lowered) / max(self.written + self.lowered + self.without, 1)

    def __str__(self) -> str:
        tokens = max(self.written + self.lowered + self.without, 1)
        line = (
            f"{self.share:.1%} of the tokens have a vector ({self.written / tokens:.1%} as written, "
            f"{self.lowered / tokens:.1%} in lower case)"
        )
        return line + (f"; without: {' '.join(self.missing[:_SHOWN])}" if self.missing else "")


def having(tokens: Sequence[str], words: Collection[str]) -> set[str]:
    """Return those of `tokens` that are among `words`."""
    if isinstance(words, Words):
        return {token for token, row in zip(tokens, words.rows_of(tokens).tolist(), strict=True) if row >= 0}
    return set(tokens).intersection(words)


def look_up(tokens: Iterable[str], words: Collection[str]) -> Lookups:
    """Return how `tokens` find their vectors.

    Args:
        tokens: The text.
        words: The words that have a vector: those of `Vectors`, or any others.

    Cost: one pass over the tokens, and of the words of `Vectors` O(n log V) for n different tokens; over others a pass.

    Example:
        >>> print(look_up(["The", "cat", "sat", "lol"], {"the", "cat", "sat"}))
        75.0% of the tokens have a vector (50.0% as written, 25.0% in lower case); without: lol
    """
    counts = Counter(tokens)
    known = having([*counts, *map(str.lower, counts)], words)
    found: Counter[str] = Counter()
    missing: list[str] = []
    for token, times in counts.most_common():
        way = "written" if token in known else "lowered" if token.lower() in known else "without"
        found[way] += times
        if way == "without":
            missing.append(token)
    return Lookups(found["written"], found["lowered"], found["without"], tuple(missing))


LONGEST = 32  # bytes that are read of a word
NOTHING = 0xFF  # stands before, behind and instead of a word: UTF-8 never has this byte


@lru_cache(maxsize=1 << 16)
def spelled(token: str) -> bytes:
    """Return the UTF-8 bytes of `token`, filled up to LONGEST with NOTHING; of longer ones the first and last half.

    Example:
        >>> spelled("né")[:5], len(spelled("né")), spelled("https://example.org/of/no/interest.html")
        (b'n\\xc3\\xa9\\xff\\xff', 32, b'https://example.no/interest.html')
    """
    found = token.encode("utf-8", "surrogatepass")
    if len(found) > LONGEST:
        found = found[: LONGEST // 2] + found[-LONGEST // 2 :]
    return found.ljust(LONGEST, bytes([NOTHING]))


def spell(tokens: Sequence[str]) -> Tensor:
    """Return the bytes of one or more tokens, uint8, shape (tokens, S)."""
    return torch.frombuffer(bytearray(b"".join(map(spelled, tokens))), dtype=torch.uint8).view(-1, LONGEST)
