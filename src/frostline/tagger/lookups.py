"""How the tokens of a text find their vectors: as written, in lower case, or not at all.

The idea: most bad results come from a silent mismatch (another language, tokenization, case or encoding), and it shows
here before an hour is spent on training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass

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


def look_up(tokens: Iterable[str], words: Set[str]) -> Lookups:
    """Return how `tokens` find their vectors.

    Args:
        tokens: The text.
        words: The words that have a vector.

    Cost: one pass over the tokens.

    Example:
        >>> print(look_up(["The", "cat", "sat", "lol"], {"the", "cat", "sat"}))
        75.0% of the tokens have a vector (50.0% as written, 25.0% in lower case); without: lol
    """
    counts = Counter(tokens)
    found: Counter[str] = Counter()
    missing: list[str] = []
    for token, times in counts.most_common():
        way = "written" if token in words else "lowered" if token.lower() in words else "without"
        found[way] += times
        if way == "without":
            missing.append(token)
    return Lookups(found["written"], found["lowered"], found["without"], tuple(missing))
