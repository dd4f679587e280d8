"""Labelled text is read the same whatever its spaces and line ends, and an error names the bad line."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pytest

import frostline as fl
from frostline.tagger import Columns, read_conll

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
    ids=["tab", "spaces", "crlf", "bom, tab alone, no last end", "more columns", "document marks"],
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
        (b"Hi\tM-place\n", ":1: tag 'M-place' of 'Hi' is not"),
        (b"Hi\tS-place\n\nYork\tU-place\n", ":3: tags of BIOES (E-, S-) beside tags of BILOU (L-, U-)"),
        (b"A\tB-x\nB\tL-x\n\nC\tU-x\nD\tB-x\nE\tE-x\n", ":6: tags of BIOES (E-, S-) beside tags of BILOU"),
        (b"Hi\tS-place\nYou\tO\n\nYork\tI-place\n", ":4: tag 'I-place' after no B-. Correct it; this file is BIOES"),
        (b"Hi\tS-place\nNew\tB-place\nYork\tO\n", ":3: tag 'O' inside an entity 'place'"),
        (b"Hi\tS-place\nNew\tB-place\n\nYork\tO\n", ":2: tag 'B-place' ends the sentence inside an entity"),
        (b"New\tB-place\nYork\tL-film\n", ":2: tag 'L-film' inside an entity 'place'"),
        (b"# text = Hi there\nHi\tO\n", ":1: tag 'there' of '#' is not O"),
        (b"Hi\tO\ncaf\xe9\tO\n", ":2: byte 0xe9 is not UTF-8. Convert it first: iconv"),
        (gzip.compress(b"Hi\tO\n", mtime=0), ":1: byte 0x8b is not UTF-8. Convert it first: gunzip"),
        (b"Hi\tO\nNew\tB-x\rYork\tO\n", ":2: a CR inside the line"),
        (b"Hi\tO\rNew\tB-x\r\rYork\tO\r", ":1: a CR inside the line"),
        (b"Hi\tB-\x1b[31mx\n", ":1: tag 'B-\\x1b[31mx' of 'Hi' is not O, B-type or I-type"),
        (b"Hi\tB-x\x00\n", ":1: tag 'B-x\\x00' of 'Hi' is not O, B-type or I-type"),
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


@pytest.mark.parametrize("line", ["{" + 10**6 * "x" + "}\n", "a b " + 10**6 * "x" + "\n", 10**6 * "x" + "\tx\n"])
def test_a_file_of_one_line_of_a_megabyte_is_refused_in_few_words(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(line, encoding="utf-8")
    for columns in (Columns(), Columns(token=9), Columns(comments=line[:1])):
        with pytest.raises(fl.DataFileError, match=re.escape(f"{path}")) as caught:
            read_conll(path, columns)
        assert len(str(caught.value)) < len(str(path)) + 400


def test_a_byte_order_mark_of_each_file_that_was_put_together_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_bytes(2 * (b"\xef\xbb\xbfNew\tB-place\nYork\tI-place\n\nHi\tO\n\n"))
    assert read_conll(path) == PLAIN * 2


@pytest.mark.parametrize(
    ("scheme", "tags"),
    [
        ("IOB1", ["I-a", "I-a", "B-a", "I-b", "O"]),
        ("IOB2", ["B-a", "I-a", "B-a", "B-b", "O"]),
        ("BIOES", ["B-a", "E-a", "S-a", "S-b", "O"]),
        ("BILOU", ["B-a", "L-a", "U-a", "U-b", "O"]),
    ],
)
def test_the_tags_of_every_scheme_are_read_as_the_same_entities(tmp_path: Path, scheme: str, tags: list[str]) -> None:
    path = tmp_path / "a.conll"
    path.write_text("".join(f"x\t{tag}\n" for tag in tags), encoding="utf-8")
    found = read_conll(path)
    assert found.scheme == scheme
    assert [list(sentence.tags) for sentence in found] == [["B-a", "I-a", "B-a", "B-b", "O"]]


@pytest.mark.parametrize(
    ("columns", "data"),
    [
        (Columns(token=2, tag=-2), b"1\tNew\tB-place\t_\n2\tYork\tI-place\t_\n\n1\tHi\tO\t_\n"),
        (Columns(token=-1, tag=1), b"B-place New\nI-place York\n\nO Hi\n"),
        (Columns(separator=","), b"New,B-place\nYork,I-place\n\nHi,O\n"),
        (Columns(separator="||", tag=2), b"New||B-place||x y\r\nYork||I-place||\r\n\r\nHi||O||O\r\n"),
        (Columns(comments="# "), b"# id = 1\n# text = New York\nNew\tB-place\n# in between\nYork\tI-place\n\nHi\tO\n"),
    ],
    ids=["columns", "from the end", "separator", "long separator", "comments"],
)
def test_columns_separators_and_comments_can_be_chosen(tmp_path: Path, columns: Columns, data: bytes) -> None:
    path = tmp_path / "a.conll"
    path.write_bytes(data)
    assert read_conll(path, columns) == PLAIN


def test_a_hash_is_a_token_unless_comments_are_asked_for_and_never_lost_then(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("#\tO\n#win\tO\n", encoding="utf-8")
    assert read_conll(path) == [(("#", "#win"), ("O", "O"))]
    assert read_conll(path, Columns(comments="# ")) == [(("#", "#win"), ("O", "O"))]
    with pytest.raises(fl.DataFileError, match=re.escape(f"{path}:1: '#\\tO' begins as a comment, '#', and reads as")):
        read_conll(path, Columns(comments="#"))


@pytest.mark.parametrize(
    ("columns", "data", "says"),
    [
        (Columns(separator=","), b"Hi,O\n,,O\n", ":2: 3 columns, where the first line has 2"),
        (Columns(tag=4), b"Hi x O\n", ":1: 3 columns in 'Hi x O', 4 needed"),
        (Columns(token=-5), b"Hi x O\n", ":1: 3 columns in 'Hi x O', 5 needed"),
        (Columns(tag=2), b"Hi UH O\n", ":1: tag 'UH' of 'Hi' is not"),
        (Columns(token=2), b"Hi\tO\n", ":1: column 2 is the token's and the tag's. Choose two columns."),
        (Columns(token=-2, tag=1), b"O\tHi\n", ":1: column -2 is the token's and the tag's"),
    ],
)
def test_columns_that_are_not_there_are_refused_with_path_and_line(
    tmp_path: Path, columns: Columns, data: bytes, says: str
) -> None:
    path = tmp_path / "bad.conll"
    path.write_bytes(data)
    with pytest.raises(fl.DataFileError, match=re.escape(f"{path}{says}")):
        read_conll(path, columns)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"token": 0}, "token: columns are counted from 1"),
        ({"tag": 0}, "tag: columns are counted"),
        ({"separator": ""}, "separator: em"),
    ],
)
def test_invalid_columns_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Columns(**wrong)


def test_a_sentence_of_641_tokens_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("x\tO\n" * 641 + "\n", encoding="utf-8")
    assert [len(sentence.tokens) for sentence in read_conll(path)] == [641]
