"""A system's output is scored as conlleval scores it, figures and layout.

The expected figures of `CASES` were printed by conlleval.pl (2004-01-26) itself under Perl 5.36; 6,300 random files of
legal and illegal tags were compared with it in the same way.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import frostline as fl
from frostline.tagger import Score, score_file

CASES = {
    "E and S": (
        "a B-x B-x\nb E-x I-x\nc S-y B-y\nd S-y S-y\n\ne O I-x\n",
        """\
processed 5 tokens with 2 phrases; found: 3 phrases; correct: 2.
accuracy:  40.00%; precision:  66.67%; recall: 100.00%; FB1:  80.00
                x: precision:  50.00%; recall: 100.00%; FB1:  66.67  2
                y: precision: 100.00%; recall: 100.00%; FB1: 100.00  1""",
    ),
    "brackets, a dot, types that change": (
        "a I-x B-x\nb I-y I-x\nc [ B-x\nd ] I-x\ne .-x I-x\n",
        """\
processed 5 tokens with 4 phrases; found: 2 phrases; correct: 0.
accuracy:   0.00%; precision:   0.00%; recall:   0.00%; FB1:   0.00
                 : precision:   0.00%; recall:   0.00%; FB1:   0.00  0
                x: precision:   0.00%; recall:   0.00%; FB1:   0.00  2
                y: precision:   0.00%; recall:   0.00%; FB1:   0.00  0""",
    ),
    "no types: its line is printed twice": (
        "a B I\nb I I\n\nc B B\nd O O\n",
        """\
processed 4 tokens with 2 phrases; found: 2 phrases; correct: 2.
accuracy:  75.00%; precision: 100.00%; recall: 100.00%; FB1: 100.00
                 : precision: 100.00%; recall: 100.00%; FB1: 100.00  2
                 : precision: 100.00%; recall: 100.00%; FB1: 100.00  2""",
    ),
    "document marks are tokens, boundaries are not": (
        "-DOCSTART- O O\n-X- -X- -X-\na B-t-u B-t-u\n\nb I-t-u I-t-u\n",
        """\
processed 3 tokens with 2 phrases; found: 2 phrases; correct: 2.
accuracy: 100.00%; precision: 100.00%; recall: 100.00%; FB1: 100.00
              t-u: precision: 100.00%; recall: 100.00%; FB1: 100.00  2""",
    ),
    "letters that no scheme has": (
        "a B-z B\nb B-z-z I-z\nc U-p L-p\nd E-p E-p\ne E-p I-p\n",
        """\
processed 5 tokens with 4 phrases; found: 4 phrases; correct: 2.
accuracy:  20.00%; precision:  50.00%; recall:  50.00%; FB1:  50.00
                 : precision:   0.00%; recall:   0.00%; FB1:   0.00  1
                p: precision: 100.00%; recall: 100.00%; FB1: 100.00  2
                z: precision:   0.00%; recall:   0.00%; FB1:   0.00  1
              z-z: precision:   0.00%; recall:   0.00%; FB1:   0.00  0""",
    ),
    "no types, E alone, B alone": (
        "a O O\nb E E\nc O O\nd B B\ne O I\nf O O\ng B I\nh O O\n",
        """\
processed 8 tokens with 3 phrases; found: 3 phrases; correct: 2.
accuracy:  75.00%; precision:  66.67%; recall:  66.67%; FB1:  66.67
                 : precision:  66.67%; recall:  66.67%; FB1:  66.67  3
                 : precision:  66.67%; recall:  66.67%; FB1:  66.67  3""",
    ),
    "dots and brackets with types": (
        "a .-x .-x\nb I-x I-y\nc .-y .-y\nd [-x [-x\ne ]-x ]-x\nf [-x I-x\ng I-x I-x\nh B-x [-x\ni O ]-x\n",
        """\
processed 9 tokens with 4 phrases; found: 5 phrases; correct: 3.
accuracy:  55.56%; precision:  60.00%; recall:  75.00%; FB1:  66.67
                x: precision:  75.00%; recall:  75.00%; FB1:  75.00  4
                y: precision:   0.00%; recall:   0.00%; FB1:   0.00  1""",
    ),
    "a letter that ends nothing": (
        "a B B\nb O X\nc B B\nd X O\ne B B\n",
        """\
processed 5 tokens with 2 phrases; found: 2 phrases; correct: 0.
accuracy:  60.00%; precision:   0.00%; recall:   0.00%; FB1:   0.00
                 : precision:   0.00%; recall:   0.00%; FB1:   0.00  2
                 : precision:   0.00%; recall:   0.00%; FB1:   0.00  2""",
    ),
    "a dot that ends nothing": (
        "a B-x B-x\nb .-x .-x\nc O O\n",
        """\
processed 3 tokens with 1 phrases; found: 1 phrases; correct: 1.
accuracy: 100.00%; precision: 100.00%; recall: 100.00%; FB1: 100.00
                x: precision:   0.00%; recall:   0.00%; FB1:   0.00  1""",
    ),
    "no token column": (
        "B-x B-x\n\nI-x O",
        """\
processed 2 tokens with 2 phrases; found: 1 phrases; correct: 1.
accuracy:  50.00%; precision: 100.00%; recall:  50.00%; FB1:  66.67
                x: precision: 100.00%; recall:  50.00%; FB1:  66.67  1""",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_figures_are_those_that_the_script_printed(tmp_path: Path, name: str) -> None:
    text, printed = CASES[name]
    path = tmp_path / "out.txt"
    path.write_text(text, encoding="utf-8")
    assert score_file(path).conlleval() == printed


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("old", "new"), [(" ", "\t"), ("\n", "\r\n"), ("\n", " \n"), ("\n\n", "\n\t\n \n\n"), ("a", "\ufeffa")]
)
def test_tabs_line_ends_blanks_and_a_byte_order_mark_change_nothing(
    tmp_path: Path, name: str, old: str, new: str
) -> None:
    text, printed = CASES[name]
    path = tmp_path / "out.txt"
    path.write_bytes((text.replace(old, new, 1) if old == "a" else text.replace(old, new)).encode())
    assert score_file(path).conlleval() == printed


def test_the_layout_is_that_of_the_output_published_with_the_script() -> None:
    counts = {"ADJP": (0, 1, 6), "ADVP": (5, 11, 8), "NP": (206, 317, 262), "PP": (89, 107, 90), "SBAR": (2, 3, 6)}
    per_type = {kind: Score(*three) for kind, three in (counts | {"VP": (69, 100, 87)}).items()}
    assert Score(371, 539, 459, per_type, tokens=961, right=808).conlleval() == (
        """\
processed 961 tokens with 459 phrases; found: 539 phrases; correct: 371.
accuracy:  84.08%; precision:  68.83%; recall:  80.83%; FB1:  74.35
             ADJP: precision:   0.00%; recall:   0.00%; FB1:   0.00  1
             ADVP: precision:  45.45%; recall:  62.50%; FB1:  52.63  11
               NP: precision:  64.98%; recall:  78.63%; FB1:  71.16  317
               PP: precision:  83.18%; recall:  98.89%; FB1:  90.36  107
             SBAR: precision:  66.67%; recall:  33.33%; FB1:  44.44  3
               VP: precision:  69.00%; recall:  79.31%; FB1:  73.80  100"""
    )


def test_tokens_may_be_empty_hold_blanks_or_be_of_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_bytes(b"ke s\tO\tO\n\tB-a\tB-a\ncaf\xe9\tI-a\tI-a\n")
    assert (score_file(path).tokens, score_file(path).correct) == (3, 1)
    path.write_bytes(b" B-a B-a\ncaf\xe9 I-a I-a\n")
    assert (score_file(path).tokens, score_file(path).correct) == (2, 1)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"a O O\n\nYork O\n", ":3: 2 columns, separated by single spaces, where the first line has 3"),
        (b"a\tO\tO\nNew York O O\n", ":2: 1 columns, separated by TABs, where the first line has 3"),
        (b"a  O O\nb O O\n", ":2: 3 columns, separated by single spaces, where the first line has 4"),
        (b"a\tO\tB-x\nb\tO\t\n", ":2: 2 columns"),
        (b"\nO\nO\n", ":2: one column, 'O'"),
        (b"a O B-\xe9\n", ":1: tag 'B-\\udce9' is not printable"),
        (b"a O O\rb O O\r", ":1: a CR inside the line"),
        (b"", ": no token in it"),
        (b"\n-X- O O\n\n", ": no token in it"),
    ],
)
def test_a_file_that_cannot_be_scored_is_refused_with_its_path_and_line(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(data)
    with pytest.raises(fl.DataFileError, match=re.escape(f"{path}{says}")) as caught:
        score_file(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"{" + 10**6 * b"x" + b"}\n", b"a O " + 10**6 * b"\xe9" + b"\n"])
def test_a_file_of_one_line_of_a_megabyte_is_refused_in_few_words(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "out.json"
    path.write_bytes(data)
    with pytest.raises(fl.DataFileError, match=re.escape(f"{path}:1: ")) as caught:
        score_file(path)
    assert len(str(caught.value)) < len(str(path)) + 300
