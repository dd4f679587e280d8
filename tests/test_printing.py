"""Columns are aligned, rules are where they should be, and a list is cut exactly at its limit."""

import pytest

from frostline.printing import cells, listed, shortened, text_table

ROWS = [("name", "rows", "note"), ("embed", "3", ""), ("head.weight", "1,024", "tied")]


def test_columns_are_as_wide_as_their_widest_cell_and_two_blanks_apart():
    assert text_table(ROWS).splitlines() == [
        "name         rows   note",
        "------------------------",
        "embed        3",
        "head.weight  1,024  tied",
    ]


def test_chosen_columns_are_aligned_to_the_right():
    assert text_table(ROWS, right=[1]).splitlines() == [
        "name          rows  note",
        "------------------------",
        "embed            3",
        "head.weight  1,024  tied",
    ]


def test_a_total_has_a_rule_above_it():
    lines = text_table([*ROWS, ("all", "1,027", "")], right={1}, total=True).splitlines()
    assert lines[1] == lines[-2] == "-" * 24
    assert lines[-1] == "all          1,027"
    assert len(lines) == 6


def test_no_line_ends_with_a_blank_and_the_rule_is_as_long_as_the_longest_line():
    lines = text_table([("a", "b"), ("long cell", ""), ("", "x")]).splitlines()
    assert all(line == line.rstrip() for line in lines)
    assert len(lines[1]) == max(map(len, lines))


def test_titles_alone_are_a_table():
    assert text_table([("a", "b")]) == "a  b\n----"


def test_rows_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="argument"):
        text_table([("a", "b"), ("c",)])


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [
        (0, 2, ""),
        (1, 2, "n0"),
        (2, 2, "n0, n1"),
        (3, 2, "n0, n1 and 1 more"),
        (1234, 1, "n0 and 1,233 more"),
    ],
)
def test_a_list_longer_than_its_limit_ends_with_how_many_more_there_are(count, most, expected):
    assert listed((f"n{index}" for index in range(count)), most) == expected


def test_columns_are_aligned_by_cells_where_letters_take_two_or_none():
    lines = text_table(
        [("type", "n"), ("\u5730\u540d", "1"), ("caf\u0065\u0301", "22"), ("\U0001f600", "3")], right=[1]
    ).splitlines()
    assert {cells(line) for line in lines} == {len("type   n")}
    assert lines[2] == "\u5730\u540d   1"  # two letters, four cells
    assert lines[3] == "cafe\u0301  22"  # five letters, four cells


def test_a_text_is_shortened_by_cells():
    assert shortened("\u5730" * 10, 20) == "\u5730" * 10
    assert shortened("\u5730" * 11, 20) == "\u5730" * 8 + "..."
    assert cells(shortened("a" + "\u5730" * 11, 20)) == 20
