"""A tagged text: its entities, its tags in any scheme, as plain values for JSON, or in colour for a terminal.

The idea: tokens keep their positions in the text, so an entity is a piece of it, `text[start:end]`, as it was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from frostline.tagger.data.tags import Scheme, spans, write_tags
from frostline.tagger.data.tokenizer import Token

_COLORS = (36, 33, 35, 32, 34, 31)  # cyan, yellow, magenta, green, blue, red


class Entity(NamedTuple):
    """A named piece of a text: characters start to end, tokens token_start to token_end, each end one past the last."""

    type: str
    text: str
    start: int
    end: int
    token_start: int
    token_end: int


@dataclass(frozen=True)
class Tagged:
    """A text, its tokens, and the tag of each in the scheme IOB2."""

    text: str
    tokens: Sequence[Token]
    tags: Sequence[str]

    @classmethod
    def from_tokens(cls, tokens: Iterable[str], tags: Sequence[str]) -> Tagged:
        """Return the tagged text of tokens that came without their text: joined by single spaces."""
        positioned: list[Token] = []
        start = 0
        for token in tokens:
            positioned.append(Token(token, start, start + len(token)))
            start += len(token) + 1
        return cls(" ".join(token.text for token in positioned), positioned, tags)

    @property
    def entities(self) -> list[Entity]:
        """The entities, in order."""
        found = []
        for kind, first, past in spans(self.tags):
            start, end = self.tokens[first].start, self.tokens[past - 1].end
            found.append(Entity(kind, self.text[start:end], start, end, first, past))
        return found

    def tags_in(self, scheme: Scheme) -> list[str]:
        """Return the tags in another scheme, always valid there."""
        return write_tags(spans(self.tags), len(self.tags), scheme)

    def to_dict(self, scheme: Scheme = "IOB2") -> dict[str, Any]:
        """Return text, tokens, tags, offsets (start and end of each token) and entities, ready for JSON.

        Example:
            >>> from frostline.tagger import tokenize
            >>> Tagged("Hi Ada!", tokenize("Hi Ada!"), ["O", "B-person", "O"]).to_dict()["entities"]
            [{'type': 'person', 'text': 'Ada', 'start': 3, 'end': 6, 'token_start': 1, 'token_end': 2}]
        """
        return {
            "text": self.text,
            "tokens": [token.text for token in self.tokens],
            "tags": self.tags_in(scheme),
            "offsets": [[token.start, token.end] for token in self.tokens],
            "entities": [entity._asdict() for entity in self.entities],
        }

    def colored(self, types: Sequence[str]) -> str:
        """Return the text with each entity in the colour of its type, followed by the type's name.

        Args:
            types: All types there are; the index of a type gives its colour, one of six.
        """
        parts = []
        shown = 0  # characters
        for entity in self.entities:
            color = _COLORS[types.index(entity.type) % len(_COLORS)]
            parts.append(
                f"{self.text[shown : entity.start]}\x1b[1;{color}m{entity.text}\x1b[0;{color}m/{entity.type}\x1b[0m"
            )
            shown = entity.end
        return "".join([*parts, self.text[shown:]])
