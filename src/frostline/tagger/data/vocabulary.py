"""The vocabulary: which row of the embedding table belongs to a token.

The idea: keep every pretrained word, not only those that training saw, so that a word met later still has its vector.

    row 0             padding: zero, never learns
    row 1             <unk>: any token without a row; learns, because training now and then replaces a word by it
    rows 2 ...        training words that the vectors miss; they learn
    the rows after    every pretrained word, in the order of the vectors; frozen

A token is looked up as it is written, then in lower case.
"""

from __future__ import annotations

from collections.abc import Sequence

from frostline.vectors import Words

PADDING, UNKNOWN, FIRST_WORD = 0, 1, 2
_CACHED = 1 << 16  # tokens whose rows are remembered


class Vocabulary:
    """The word of each row.

    Args:
        words: The words of rows 2, 3, ..., all different, first the missing ones, then those of the vectors.
        missing: How many of `words` the vectors miss.

    Cost: the words are packed (see `frostline.vectors.Words`); the rows of recent tokens are cached.
    """

    def __init__(self, words: Sequence[str], missing: int) -> None:
        self.words = words if isinstance(words, Words) else Words.of(words)
        self.missing = missing
        self._cache: dict[str, int] = {}

    def __len__(self) -> int:
        """Return the number of rows of the table, padding and <unk> included."""
        return FIRST_WORD + len(self.words)

    def row(self, token: str) -> int:
        """Return the row of `token`, of its lower case where it has none, or of <unk>.

        Example:
            >>> vocabulary = Vocabulary(["iPad", "the"], missing=1)
            >>> [vocabulary.row(token) for token in ["iPad", "The", "ipad"]]
            [2, 3, 1]
        """
        row = self._cache.get(token)
        if row is None:
            if len(self._cache) == _CACHED:
                self._cache.clear()
            row = self._cache[token] = self._find(token)
        return row

    def _find(self, token: str) -> int:
        for spelling in (token, token.lower()):
            if (index := self.words.row_of(spelling)) >= 0:
                return FIRST_WORD + index
        return UNKNOWN

    @property
    def learned(self) -> range:
        """The rows that learn when missing words do: <unk> and theirs."""
        return range(UNKNOWN, FIRST_WORD + self.missing)
