"""Tags of entities, one for each token: reading and writing the schemes.

The idea: IOB1 and IOB2 need not be told apart to be read: B- starts an entity, I- continues an entity of its type and
starts one where there is none. BIOES and BILOU are known by their own letters; they mark both ends of an entity, so
tags that contradict each other raise an error.

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


def is_iob2_tag(tag: object) -> bool:
    """Return whether `tag` is O, B-type or I-type in printable characters.

    Example:
        >>> [is_iob2_tag(tag) for tag in ["O", "I-geo-loc", "B-", "S-place", "place", None]]
        [True, True, False, False, False, False]
    """
    return isinstance(tag, str) and tag.isprintable() and _IOB2.fullmatch(tag) is not None


def may_follow(tag: str, previous: str) -> bool:
    """Return whether IOB2 allows `tag` after `previous`."""
    return not tag.startswith("I-") or previous in (f"B-{tag[2:]}", tag)


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Return tags that mark the same entities in IOB2: an I-type that continues no entity becomes B-type.

    Example:
        >>> to_iob2(["I-a", "I-a", "I-b", "O", "B-b"])
        ['B-a', 'I-a', 'B-b', 'O', 'B-b']
    """
    previous, valid = "O", []
    for tag in tags:
        previous = tag if may_follow(tag, previous) else f"B-{tag[2:]}"
        valid.append(previous)
    return valid


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
    for index, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        if open_type is not None and (prefix != "I" or kind != open_type):
            found.append(Span(open_type, start, index))
            open_type = None
        if prefix != "O" and open_type is None:
            open_type, start = kind, index
    return found


def detect_scheme(sentences: Iterable[Sequence[str]]) -> Scheme:
    """Return the scheme of the tags of some sentences.

    Args:
        sentences: The tags of each sentence. Tags that are valid in IOB1 and in IOB2 mean the same in both and count
            as IOB2, and so do tags that are valid in neither.

    Raises:
        ValueError: tags of BIOES beside tags of BILOU.

    Example:
        >>> detect_scheme([["I-a", "B-a"]]), detect_scheme([["B-a", "I-a"]]), detect_scheme([["O", "S-a"]])
        ('IOB1', 'IOB2', 'BIOES')
    """
    letters: set[str] = set()
    only_iob1 = only_iob2 = False
    for tags in sentences:
        letters |= {tag[0] for tag in tags}
        for previous, tag in zip(["O", *tags], tags, strict=False):
            same_type = previous[2:] == tag[2:]
            only_iob1 |= tag[0] == "I" and not same_type
            only_iob2 |= tag[0] == "B" and not same_type
    if letters & set("ES") and letters & set("LU"):
        raise ValueError("tags of BIOES (E-, S-) beside tags of BILOU (L-, U-). Write all in one scheme.")
    if letters & set("ES"):
        return "BIOES"
    if letters & set("LU"):
        return "BILOU"
    return "IOB1" if only_iob1 and not only_iob2 else "IOB2"


def read_tags(tags: Sequence[str], scheme: Scheme) -> list[Span]:
    """Return the entities of one sentence, in order.

    Args:
        tags: O, or a letter of the scheme, a dash and a type, for each token.
        scheme: What `detect_scheme` found in the whole text.

    Raises:
        ValueError: a contradiction in BIOES or BILOU; its `args` are the index of the tag and what is wrong with it.

    Example:
        >>> read_tags(["B-a", "E-a", "S-a"], "BIOES")
        [Span(type='a', start=0, end=2), Span(type='a', start=2, end=3)]
    """
    if scheme in ("IOB1", "IOB2"):
        return spans(tags)
    found: list[Span] = []
    start = 0
    open_type = ""  # of an entity that has begun and not ended
    for index, written in enumerate([*tags, "O"]):
        letter, _, kind = written.partition("-")
        letter = letter.translate(_TO_BIOES)  # the letter alone: a type may be LOC
        if (letter in ("I", "E")) != bool(open_type) or (open_type and kind != open_type):
            if open_type and index == len(tags):
                raise ValueError(index - 1, f"{tags[-1]!r} ends the sentence inside an entity")
            raise ValueError(
                index, f"{written!r} " + (f"inside an entity {open_type!r}" if open_type else "after no B-")
            )
        if letter in ("B", "S"):
            start = index
        if letter in ("E", "S"):
            found.append(Span(kind, start, index + 1))
        open_type = kind if letter in ("B", "I") else ""
    return found


def write_tags(entities: Iterable[Span], length: int, scheme: Scheme = "IOB2") -> list[str]:
    """Return the tags of a sentence.

    Args:
        entities: Its entities, in order, none overlapping another.
        length: How many tokens it has.
        scheme: The scheme of the tags.

    Example:
        >>> write_tags([Span("a", 0, 2), Span("a", 2, 3)], 4, "IOB1")
        ['I-a', 'I-a', 'B-a', 'O']
        >>> write_tags([Span("a", 0, 2), Span("a", 2, 3)], 4, "BILOU")
        ['B-a', 'L-a', 'U-a', 'O']
    """
    tags = ["O"] * length
    previous = Span("", 0, 0)
    for entity in entities:
        kind, start, end = entity
        letters = ["B"] + ["I"] * (end - start - 1)
        if scheme == "IOB1" and (previous.type, previous.end) != (kind, start):
            letters[0] = "I"
        elif scheme in ("BIOES", "BILOU"):
            letters[-1] = "E" if end - start > 1 else "S"
        prefixes = "".join(letters).translate(_TO_BILOU if scheme == "BILOU" else {})
        tags[start:end] = [f"{prefix}-{kind}" for prefix in prefixes]
        previous = entity
    return tags
