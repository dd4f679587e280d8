"""Which words of a text have a vector.

Most bad results come from a silent mismatch between text and vectors: another language, tokenization, case or encoding.
`cover` shows it before an hour is spent on training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from frostline.printing import listed
from frostline.vectors.sources import Source, as_vectors

_PRINTED = 10  # missing words


@dataclass(frozen=True)
class Coverage:
    """How much of a text has a vector.

    Attributes:
        words: How many different words the text has.
        tokens: How many words it has, repetitions included.
        as_written: How many tokens have a vector as they are written.
        in_lower_case: How many more tokens have one in lower case.
        missing: The words without a vector, the most frequent first; equally frequent ones in the order of the text.
        lower_case_finds: How many of the missing tokens would have a vector in lower case.
    """

    words: int
    tokens: int
    as_written: int
    in_lower_case: int
    missing: list[str]
    lower_case_finds: int = 0

    @property
    def found_words(self) -> int:
        """How many different words have a vector."""
        return self.words - len(self.missing)

    @property
    def found_tokens(self) -> int:
        """How many tokens have a vector."""
        return self.as_written + self.in_lower_case

    @property
    def share(self) -> float:
        """Share of the tokens that have a vector, 0 to 1; 1 for an empty text."""
        return self.found_tokens / self.tokens if self.tokens else 1.0

    def __str__(self) -> str:
        of_tokens = " of the tokens" if self.tokens != self.words else ""
        lowered = f", {self.in_lower_case / self.tokens:.1%} only in lower case" if self.in_lower_case else ""
        line = f"{self.found_words:,} of {self.words:,} words have a vector ({self.share:.1%}{of_tokens}{lowered})"
        line = f"{line}; missing: {listed(self.missing, _PRINTED)}" if self.missing else line
        return f"{line}; {self.hint}" if self.hint else line

    @property
    def hint(self) -> str:
        """What would find more words; empty if nothing does."""
        if not self.lower_case_finds:
            return ""
        return f"{self.lower_case_finds / self.tokens:.1%} more in lower case: pass lowercase=True"


def cover(words: Iterable[str] | Mapping[str, int], vectors: Source, lowercase: bool = False) -> Coverage:
    """Count which words of a text or a vocabulary have a vector.

    Args:
        words: The words, repeated as in the text, or how often each occurs, such as a `collections.Counter`.
        vectors: Where to look: Vectors, a path, a dict or gensim's KeyedVectors.
        lowercase: Look a word that is missing up again as `word.lower()`.

    Returns:
        A `Coverage`; prints as one line, with a hint where lower case finds more words.

    Cost: O(n log V) for n different words.

    Example:
        >>> print(cover(["ice", "Snow", "rain", "ice"], {"ice": [1.0], "snow": [2.0]}, lowercase=True))
        2 of 3 words have a vector (75.0% of the tokens, 25.0% only in lower case); missing: rain
    """
    counts, vectors = Counter(words), as_vectors(vectors)
    different = list(counts)
    as_written = vectors.rows_of(different) >= 0
    in_lower_case = vectors.rows_of(different, lowercase=True) >= 0
    found = in_lower_case if lowercase else as_written
    tokens = np.fromiter(counts.values(), dtype=np.int64, count=len(counts))
    missing = [different[index] for index in np.flatnonzero(~found).tolist()]
    return Coverage(
        words=len(counts),
        tokens=counts.total(),
        as_written=int(tokens[as_written].sum()),
        in_lower_case=int(tokens[found & ~as_written].sum()),
        missing=sorted(missing, key=counts.__getitem__, reverse=True),
        lower_case_finds=int(tokens[in_lower_case & ~found].sum()),
    )
