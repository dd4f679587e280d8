"""CoNLL-U is found by itself, and columns that cannot be tokens or tags are refused with line and fix."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from frostline.errors import DataFileError
from frostline.tagger import CONLLU, Columns, read_conll, score_file
from frostline.tagger.data.conll import read_tokens
from frostline.tagger.data.layout import check_text, find_columns

UNER = "# sent_id = 1\n# text = Ada left\n1\tAda\tB-PER\t-\tann\n2\tleft\tO\t-\tann\n\n1\tOslo\tB-LOC\t-\tann\n"
UD = (
    "# text = don't\n1-2\tdon't\t_\t_\t_\t_\t_\t_\t_\t_\n1\tdo\tdo\tAUX\t_\t_\t0\troot\t_\tNER=O\n"
    "2\tn't\tnot\tPART\t_\t_\t1\tadvmod\t_\tSpaceAfter=No|ner=B-x\n2.1\tx\tx\tX\t_\t_\t_\t_\t_\t_\n\n"
)


def _file(folder: Path, text: str) -> Path:
    path = folder / "f.conll"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("columns", [None, CONLLU])
def test_conll_u_is_read_with_its_tags_and_without_comments_ranges_and_empty_words(
    columns: Columns | None, tmp_path: Path
) -> None:
    found = read_conll(_file(tmp_path, UNER), columns)
    assert found == [(("Ada", "left"), ("B-PER", "O")), (("Oslo",), ("B-LOC",))]
    assert found.columns == CONLLU
    assert read_conll(_file(tmp_path, UD), columns) == [(("do", "n't"), ("O", "B-x"))]


@pytest.mark.parametrize(
    "text",
    ["1\tB-x\n2\tO\n", "1 Ada O\n2 left O\n", "1\tCD\tO\n", "2\tAda\tO\n3\tleft\tO\n", "#\tO\tO\nnow\tO\tO\n", ""],
)
def test_columns_that_only_look_a_little_like_conll_u_are_not_taken_for_it(text: str) -> None:
    assert find_columns(text.splitlines())[0] == Columns()


def test_the_tag_of_ten_columns_is_named_where_it_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=re.escape("f.conll:3: no NER= in the last of the ten columns")):
        read_conll(_file(tmp_path, UD.replace("NER=O", "_")))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("# text = Ada left\nAda\tB-x\nleft\tO\n", "f:1: '# text = Ada left' begins like a comment"),
        ("Ada B-x\n# newdoc id = 7\nleft O\n", "f:2: '# newdoc id = 7' begins like a comment"),
        ("1 Ada B-x\n2 left O\n3 . O\n", "f:1: column 1 counts 1, 2, 3 instead of holding tokens"),
        ("0\tAda\n1\tleft\n2\t.\n", "f:1: column 1 counts 0, 1, 2 instead of holding tokens"),
        ("x\tO\n\n1\tAda\n2\tleft\n3\t.\n", "f:3: column 1 counts 1, 2, 3 instead of holding tokens"),
        ("".join(f"{i * 0.5}\tAda\n\n" for i in range(12)), "f:19: column 1 holds nothing but numbers so far"),
    ],
)
def test_columns_that_cannot_be_tokens_are_refused(text: str, says: str) -> None:
    with pytest.raises(DataFileError, match=re.escape(says)):
        list(read_tokens(text.splitlines(), "f", None))


@pytest.mark.parametrize(
    "text",
    [
        "#\tO\nnow\tO\n",
        "# O\nnow O\n",
        "#tag\nnow\n",
        "1\n2\n3\n",  # one column: nothing else can be the token
        "1\tO\n2\tO\n\nmore\tO\n",
        "".join(f"{i}\tO\n\n" for i in range(9)) + "end\tO\n",
    ],
)
def test_tokens_that_are_numbers_or_begin_like_comments_are_read(text: str) -> None:
    tokens = [token for block in read_tokens(text.splitlines(), "f", None) for _, token in block]
    assert tokens == [line.split("\t")[0].split(" ")[0] for line in text.splitlines() if line]


def test_a_column_of_numbers_is_read_where_it_is_named() -> None:
    lines = ["1 Ada", "2 left", "3 ."]
    assert [token for _, token in next(read_tokens(lines, "f", Columns(token=1)))] == ["1", "2", "3"]


def test_columns_are_refused_as_plain_text() -> None:
    lines = ["Ada\tB-x", "", "left O", "now\tO", "."]
    with pytest.raises(DataFileError, match=re.escape("f:4: 'now\\tO' and the lines before end with a tag")):
        list(check_text(lines, "f"))
    assert list(check_text(lines[:3] + lines[4:], "f")) == lines[:3] + lines[4:]
    assert list(check_text(["Blood type O", "Type O", "She wrote", *lines], "f"))[2] == "She wrote"


GOLD_IN_THREE = "1\tAda\tB-x\t-\tann\tB-x\n2\tleft\tO\t-\tann\tB-x\n"


def test_the_gold_column_of_a_score_can_be_named_or_is_found_in_conll_u(tmp_path: Path) -> None:
    counts = {}
    for name, columns in {"found": None, "named": Columns(tag=3), "format": replace(CONLLU)}.items():
        found = score_file(_file(tmp_path, GOLD_IN_THREE), columns)
        counts[name] = (found.correct, found.predicted, found.gold)
    assert set(counts.values()) == {(1, 2, 1)}
    assert score_file(_file(tmp_path, ["# B-x B-x", "Ada B-x O B-x", ""][1] + "\n"), Columns(tag=2)).gold == 1


@pytest.mark.parametrize(
    ("text", "columns", "says"),
    [
        (
            "Ada\tB-x\t-\tB-x\nleft\tO\t-\tO\nOslo\tB-y\tbob\tB-y\n",
            None,
            "f.conll:1: the gold tag '-' in column 3 of 4 is no tag, and so are most of that column. Pass --tag-column",
        ),
        ("Ada O\nOslo B-x\nis O\n", None, "f.conll:1: the gold tag 'Ada' in column 1 of 2 is no tag"),
        ("Ada NNP O\nis VBZ O\n", None, "f.conll:1: the gold tag 'NNP' in column 2 of 3 is no tag"),
        ("Ada O NNP\nis O VBZ\n", None, "the predicted tag 'NNP' in column 3 of 3 is no tag"),
        ("Ada B-x O\n", Columns(tag=1), "f.conll:1: the gold tag 'Ada' in column 1 of 3 is no tag"),
        ("Ada B-x O\n", Columns(tag=3), "f.conll:1: column 3 is the last, which holds the predicted tag"),
        ("Ada B-x O\n", Columns(tag=7), "f.conll:1: no gold tag in column 7: the line has 3"),
    ],
)
def test_a_column_without_tags_is_refused_and_not_scored_0(
    text: str, columns: Columns | None, says: str, tmp_path: Path
) -> None:
    with pytest.raises(DataFileError, match=re.escape(says)):
        score_file(_file(tmp_path, text), columns)
