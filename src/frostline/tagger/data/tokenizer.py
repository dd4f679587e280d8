"""Text to tokens: split at blanks, then punctuation off the ends of words and English clitics off their backs.

The idea: what is already split stays as it is, so text with a blank between all tokens passes through unchanged. Every
token is a piece of the text, to the letter: nothing is normalised, and nothing but blanks is left out.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_CHUNK = re.compile(r"\S+")
_WHOLE = re.compile(r"[@#]\w+|(https?://|www\.)\S*\w/?|([A-Za-z]\.)+|\W+|'\w+|n't", re.IGNORECASE)
_PARTS = re.compile(r"^(?P<before>\W*)(?P<word>.*\w)(?P<after>\W*)$")
_CLITIC = re.compile(r"(?P<word>\w)(?P<clitic>n't|'(?:s|m|d|re|ve|ll))$", re.IGNORECASE)
_MARK = re.compile(r"[!-~]|[^!-~]+")  # ASCII one by one, a run of others (an emoji and its modifiers) whole


class Token(NamedTuple):
    """A piece of a text: its characters, `text[start:end]`, counted in code points."""

    text: str
    start: int
    end: int


def tokenize(text: str) -> list[Token]:
    """Return the tokens of one line of text, with their places.

    Example:
        >>> for token in tokenize("Ada's here."):
        ...     print(*token)
        Ada 0 3
        's 3 5
        here 6 10
        . 10 11

    Cost: regular expressions over each word, 2 to 3 microseconds a token.
    """
    tokens = []
    for chunk in _CHUNK.finditer(text):
        start = chunk.start()
        for piece in _split_chunk(chunk[0]):
            tokens.append(Token(piece, start, start + len(piece)))
            start += len(piece)
    return tokens


def split(text: str) -> list[str]:
    r"""Return the tokens of one line of text.

    Example:
        >>> split('"It\'s in Paris," she said (again).')
        ['"', 'It', "'s", 'in', 'Paris', ',', '"', 'she', 'said', '(', 'again', ')', '.']
        >>> split("See http://a.b/c, @me :)")
        ['See', 'http://a.b/c', ',', '@me', ':)']
        >>> split("They don 't , they do n't")
        ['They', 'don', "'t", ',', 'they', 'do', "n't"]
    """
    return [token.text for token in tokenize(text)]


def _split_chunk(chunk: str) -> list[str]:
    if _WHOLE.fullmatch(chunk):
        return [chunk]
    found = _PARTS.match(chunk)
    if found is None:
        return [chunk]
    before, word, after = found["before"], found["word"], found["after"]
    if before.endswith(("@", "#")):
        before, word = before[:-1], before[-1] + word
    clitic = _CLITIC.search(word.replace("’", "'"))
    cut = clitic.start("clitic") if clitic else len(word)
    return [*_MARK.findall(before), word[:cut], *filter(None, [word[cut:]]), *_MARK.findall(after)]
