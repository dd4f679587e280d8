"""How the tokens of a text find their vectors: as written, in lower case, or not at all.

The idea: most bad results come from a silent mismatch (another language, tokenization, case or encoding), and it shows
here before an hour is spent on training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from frostline.vectors import Words

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
