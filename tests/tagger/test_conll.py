"""Labelled text is read the same whatever its blanks and line ends, and a bad line is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import frostline as fl
from frostline.tagger import read_conll

PLAIN = [(("New", "York"), ("B-place", "I-place")), (("Hi",), ("O",))]


@pytest.mark.parametrize(
    "data",
    [
        b"New\tB-place\nYork\tI-place\n\nHi\tO\n",
        b"New B-place\nYork I-place\n\nHi O\n\n\n",
        b"New\tB-place\r\nYork\tI-place\r\n\r\nHi\tO\r\n",
        b"\xef\xbb\xbfNew\tB-place\nYork\tI-place\n\t\nHi\tO",
        b"\n \t \nNew NNP x B-place\nYork  NNP  y  I-place \n  \nHi UH z O\t\n",
        b"-DOCSTART- -X- O O\n\nNew\t_\tB-place\nYork\t_\tI-place\n-DOCSTART-\nHi\t_\tO\n",
    ],
    ids=["tab", "blanks", "crlf", "bom, tab alone, no last end", "more columns", "document marks"],
)
def test_every_layout_of_the_same_sentences_reads_the_same(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.conll"
    path.write_bytes(data)
    assert read_conll(path) == PLAIN


def test_a_tab_keeps_blanks_and_empty_tokens_and_other_unicode_blanks_belong_to_tokens(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("ke s\tO\n\tO\nsmile \tO\na\u00a0b\tO\nc\u2028d\tO\ne\x85f O\n", encoding="utf-8")
    assert [sentence.tokens for sentence in read_conll(path)] == [
        ("ke s", "", "smile", "a\u00a0b", "c\u2028d", "e\x85f")
    ]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"Hi\tO\nYork\n", ":2: no tag beside 'York'"),
        (b"Hi\tO\nYork\t\n", ":2: no tag beside 'York'"),
        (b" O\n", ":1: no token before 'O'"),
        (b"Hi\tO\n\nYork\tLOC\n", ":3: tag 'LOC' of 'York' is not O, B-type or I-type"),
        (b"Hi\tB-\n", ":1: tag 'B-' of 'Hi' is not"),
        (b"Hi\tS-place\n", ":1: tag 'S-place' of 'Hi' is not"),
        (b"Hi\tO\ncaf\xe9\tO\n", ":2: byte 0xe9 is not UTF-8"),
        (b"", ": no labelled token in it"),
        (b"\n\n \t\n", ": no labelled token in it"),
    ],
)
def test_a_bad_file_is_refused_with_its_path_and_line(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "bad.conll"
    path.write_bytes(data)
    with pytest.raises(fl.DataFileError, match=re.escape(f"{path}{says}")) as caught:
        read_conll(path)
    assert "\n" not in str(caught.value)
