"""Tag schemes: the ways to write entities as one tag a token.

The idea: IOB1 and IOB2 need not be told apart to be read, since one reading is right for both: B- starts an entity, I-
goes on with an entity of its type and starts one where there is none. BIOES and BILOU are known by the letters that
the others lack; they say each end twice, so what contradicts itself is refused.

    tokens   New      York     City     Oslo     Rome     is        (one entity of three tokens, two of one)
    IOB1     I-place  I-place  I-place  B-place  B-place  O         B- only right behind an entity of the same type
    IOB2     B-place  I-place  I-place  B-place  B-place  O         also called BIO
    BIOES    B-place  I-place  E-place  S-place  S-place  O         also called IOBES
    BILOU    B-place  I-place  L-place  U-place  U-place  O
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

Scheme = Literal["IOB1", "IOB2", "BIOES", "BILOU"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
_IOB2 = re.compile(r"O|[BI]-.+")
_TO_BIOES = str.maketrans("LU", "ES")
_TO_BILOU = str.maketrans("ES", "LU")


class Span(NamedTuple):
    """One entity: its type and the tokens start, start + 1, ..., end - 1."""

    type: str
    start: int
    end: int


def is_iob2(tag: object) -> bool:
    """Return whether `tag` is O, B-type or I-type in letters that can be printed.

    Example:
        >>> [is_iob2(tag) for tag in ["O", "I-geo-loc", "B-", "S-place", "place", None]]
        [True, True, False, False, False, False]
    """
    return isinstance(tag, str) and tag.isprintable() and _IOB2.fullmatch(tag) is not None


def detect(sentences: Iterable[Sequence[str]]) -> Scheme:
    """Return the scheme that the tags of some sentences are written in.

    Args:
        sentences: The tags of each sentence. Tags that two schemes could have written are read alike in both; they
            count as IOB2, and so do tags that neither IOB1 nor IOB2 allows.

    Raises:
        ValueError: tags of BIOES beside tags of BILOU.

    Example:
        >>> detect([["I-a", "B-a"]]), detect([["B-a", "I-a"]]), detect([["O", "S-a"]])
        ('IOB1', 'IOB2', 'BIOES')
    """
    letters: set[str] = set()
    only_iob1 = only_iob2 = False
    for tags in sentences:
        letters |= {tag[0] for tag in tags}
        for before, tag in zip(["O", *tags], tags, strict=False):
            same_type = before[2:] == tag[2:]
            only_iob1 |= tag[0] == "I" and not same_type
            only_iob2 |= tag[0] == "B" and not same_type
    if letters & set("ES") and letters & set("LU"):
        raise ValueError("tags of BIOES (E-, S-) beside tags of BILOU (L-, U-). Write all in one scheme.")
    if letters & set("ES"):
        return "BIOES"
    if letters & set("LU"):
        return "BILOU"
    return "IOB1" if only_iob1 and not only_iob2 else "IOB2"


def read(tags: Sequence[str], scheme: Scheme) -> list[Span]:
    """Return the entities of one sentence, in order.

    Args:
        tags: O, or a letter of the scheme, a dash and a type, for each token.
        scheme: What `detect` found in the whole text.

    Raises:
        ValueError: a contradiction in BIOES or BILOU; its `args` are the place of the tag and what is wrong with it.

    Example:
        >>> read(["B-a", "E-a", "S-a"], "BIOES")
        [Span(type='a', start=0, end=2), Span(type='a', start=2, end=3)]
    """
    if scheme in ("IOB1", "IOB2"):
        return spans(tags)
    found: list[Span] = []
    start = 0
    open_type = ""  # of the entity that the tags before have left open
    for place, written in enumerate([*tags, "O"]):
        tag = written.translate(_TO_BIOES) if written[:1] in ("L", "U") else written
        letter, _, kind = tag.partition("-")
        if (letter in ("I", "E")) != bool(open_type) or (open_type and kind != open_type):
            if open_type and place == len(tags):
                raise ValueError(place - 1, f"{tags[-1]!r} ends the sentence inside an entity")
            raise ValueError(
                place, f"{written!r} " + (f"inside an entity {open_type!r}" if open_type else "after no B-")
            )
        if letter in ("B", "S"):
            start = place
        if letter in ("E", "S"):
            found.append(Span(kind, start, place + 1))
        open_type = kind if letter in ("B", "I") else ""
    return found


def write(entities: Iterable[Span], length: int, scheme: Scheme = "IOB2") -> list[str]:
    """Return the tags of a sentence.

    Args:
        entities: Its entities, in order, none overlapping another.
        length: How many tokens it has.
        scheme: What to write.

    Example:
        >>> write([Span("a", 0, 2), Span("a", 2, 3)], 4, "IOB1")
        ['I-a', 'I-a', 'B-a', 'O']
        >>> write([Span("a", 0, 2), Span("a", 2, 3)], 4, "BILOU")
        ['B-a', 'L-a', 'U-a', 'O']
    """
    tags = ["O"] * length
    before = Span("", 0, 0)
    for entity in entities:
        kind, start, end = entity
        letters = ["B"] + ["I"] * (end - start - 1)
        if scheme == "IOB1" and (before.type, before.end) != (kind, start):
            letters[0] = "I"
        elif scheme in ("BIOES", "BILOU"):
            letters[-1] = "E" if end - start > 1 else "S"
        name = "".join(letters).translate(_TO_BILOU if scheme == "BILOU" else {})
        tags[start:end] = [f"{letter}-{kind}" for letter in name]
        before = entity
    return tags


def spans(tags: Sequence[str]) -> list[Span]:
    """Return the entities of one sentence, in order.

    Args:
        tags: O, B-type or I-type for each token.

    Example:
        >>> spans(["B-person", "I-person", "O", "I-place"])
        [Span(type='person', start=0, end=2), Span(type='place', start=3, end=4)]

    Source: conlleval, and seqeval's default mode.
    """
    found: list[Span] = []
    open_type = None
    start = 0
    for position, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        if open_type is not None and (prefix != "I" or kind != open_type):
            found.append(Span(open_type, start, position))
            open_type = None
        if prefix != "O" and open_type is None:
            open_type, start = kind, position
    return found


def legal(tags: Sequence[str]) -> list[str]:
    """Return tags that mark the same entities and obey BIO: an I-type that continues nothing becomes B-type.

    Example:
        >>> legal(["I-a", "I-a", "I-b", "O", "B-b"])
        ['B-a', 'I-a', 'B-b', 'O', 'B-b']
    """
    before, chain = "O", []
    for tag in tags:
        before = tag if may_follow(tag, before) else f"B-{tag[2:]}"
        chain.append(before)
    return chain


def may_follow(tag: str, before: str) -> bool:
    """Whether BIO allows `tag` after `before`."""
    return not tag.startswith("I-") or before in (f"B-{tag[2:]}", tag)
