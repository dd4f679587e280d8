"""Which columns of a file hold tokens and tags, and how a line is cut into columns.

The idea: only TAB and SPACE separate, so every other character, Unicode spaces included, belongs to a token. Where a
line holds a TAB, only TABs separate: a token may then hold spaces, or be empty, as happens in real files.
"""

from __future__ import annotations

import re
import reprlib
from dataclasses import dataclass

_TAG = re.compile(r"O|[BIESLU]-.+")
_WHITESPACE = " \t\r"
_CONLLU_COLUMNS = 10
_NER = re.compile(r"(?:.*\|)?NER=([^|]*)", re.IGNORECASE)
_NO_WORD = re.compile(r"[0-9]+[-.][0-9]+")  # the id of a range of words in CoNLL-U, or of an empty word
_SHORT = reprlib.Repr()
_SHORT.maxstring = 80  # in a message: a binary file may be one line of megabytes
quoted = _SHORT.repr


@dataclass(frozen=True)
class Columns:
    """Which columns of a file hold tokens and tags.

    Args:
        token: Column of the token: 1 is the first, -1 the last. None: the first, unless that holds numbers.
        tag: Column of the tag.
        separator: The characters between columns. Every line must then have the same number of columns, since a
            separator inside a token looks like any other. None: TAB in a line that has one, else spaces.
        comments: A line that begins with this is skipped. None: no line is, since `#` is a token like any other.
        ids: The first column numbers the tokens, as in CoNLL-U (see `CONLLU`): ranges (3-4) and empty words (5.1) are
            skipped, and of ten columns the tag is NER=B-type in the last.

    Raises:
        ValueError: column 0, or an empty separator or prefix.
    """

    token: int | None = None
    tag: int = -1
    separator: str | None = None
    comments: str | None = None
    ids: bool = False

    def __post_init__(self) -> None:
        for name in ("token", "tag"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name}: columns are counted from 1 (the first) or -1 (the last), got 0.")
        for name in ("separator", "comments"):
            if getattr(self, name) == "":
                raise ValueError(f"{name}: empty. Pass at least one character, or None.")

    def parse(self, line: str) -> tuple[str, str]:
        """Return token and tag of a line.

        Raises:
            ValueError: the line has no valid token and tag.
        """
        fields = self.fields(line)
        if len(fields) < 2:
            raise ValueError(
                f"no tag beside {quoted(fields[0])}. Write token, TAB, tag; leave a line empty to end a sentence."
            )
        token, tag = self.parse_token(line), self._tag(fields, line)
        if _index(self.token or 1) % len(fields) == _index(self.tag) % len(fields):
            raise ValueError(f"column {self.token or 1} is the token's and the tag's. Choose two columns.")
        if not _TAG.fullmatch(tag) or not tag.isprintable():
            raise ValueError(
                f"tag {quoted(tag)} of {quoted(token)} is not O, B-type or I-type (nor E-, S-, L- or U-type), in "
                f"printable characters. Say which column holds the tag, and what begins a comment."
            )
        return token, tag

    def parse_token(self, line: str) -> str:
        """Return the token of a line, which need not have a tag.

        Raises:
            ValueError: the line has no token.
        """
        token = _field(self.fields(line), self.token or 1, line)
        if not token and self.separator is None and "\t" not in line:
            raise ValueError(
                f"no token before {quoted(line.strip(_WHITESPACE))}. Begin the line with it, or separate by TABs."
            )
        return token

    def is_skipped(self, line: str) -> bool:
        """Return whether a line is a comment, or has an id that is no word's.

        Raises:
            ValueError: the line could be a token as well, which must not be lost.
        """
        if self.ids and _NO_WORD.fullmatch(line.partition("\t")[0]):
            return True
        if self.comments is None or not line.startswith(self.comments):
            return False
        try:
            token, _ = self.parse(line)
        except ValueError:
            return True
        raise ValueError(
            f"{quoted(line)} begins as a comment, {self.comments!r}, and reads as the token {quoted(token)} with its "
            f"tag. Pass a prefix that only comments have."
        )

    def _tag(self, fields: list[str], line: str) -> str:
        if not self.ids or len(fields) < _CONLLU_COLUMNS:
            return _field(fields, self.tag, line)
        found = _NER.fullmatch(fields[_CONLLU_COLUMNS - 1])
        if found is None:
            raise ValueError(
                f"no NER= in the last of the ten columns, {quoted(fields[_CONLLU_COLUMNS - 1])}. Write NER=O or "
                f"NER=B-type there, or name the tag's column."
            )
        return found[1]

    def fields(self, line: str) -> list[str]:
        """Return the columns of a line."""
        if self.separator is not None:
            return [field.strip(" ") for field in line.split(self.separator)]
        line = line.rstrip(_WHITESPACE)
        return [field.strip(" ") for field in line.split("\t")] if "\t" in line else re.split(" +", line)

    def end_with_separator(self, line: str) -> str:
        """Return a line with a separator at its end, ready for one more column."""
        if self.separator is not None:
            return line + self.separator
        if "\t" in line:
            return line + "\t"
        line = line.rstrip(_WHITESPACE)
        return line + (" " if " " in line else "\t")


CONLLU = Columns(token=2, tag=3, separator="\t", comments="#", ids=True)
"""CoNLL-U, and the IOB2 files of Universal NER: id, token, tag, ...; comments begin with #."""


def _field(fields: list[str], column: int, line: str) -> str:
    if len(fields) < abs(column):
        raise ValueError(
            f"{len(fields)} columns in {quoted(line)}, {abs(column)} needed. Choose other columns or a separator."
        )
    return fields[_index(column)]


def _index(column: int) -> int:
    return column - (column > 0)
