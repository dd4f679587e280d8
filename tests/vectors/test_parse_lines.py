"""The fast parsers and the careful one read the same numbers, bit for bit."""

import random
import sys

import numpy as np
import pytest

from frostline.vectors import parse_lines

SCRAPS = [
    *(
        b"a",
        b"bb",
        b" ",
        b" ",
        b" ",
        b"  ",
        b"\t",
        b"\n",
        b"\n",
        b"\r\n",
        b"\r",
        b"1",
        b"2.5",
        b"-3e-2",
        b"nan",
        b"inf",
    ),
    *(b"1e400", b"\xc2\xa0", b"\xef\xbb\xbf", b"\xc3", b'"', b"#", b"\x00", b"\x0b", b"\x85", b"+.5", b".", b"x", b","),
]


def outcome(parse, block, width):
    try:
        chunk = parse(block, width)
    except parse_lines.BadLine as error:
        return error.line, str(error)
    return chunk.words, chunk.lengths.tolist(), chunk.matrix.view(np.uint32).tolist()


def dirty_block(draw, width):
    if draw.random() < 0.5:
        return b"".join(draw.choices(SCRAPS, k=draw.randint(1, 25)))
    lines = []
    for _ in range(draw.randint(1, 4)):
        word = b"".join(draw.choices(SCRAPS, k=draw.choice([1, 1, 1, 2])))
        separator = draw.choice([b" "] * 8 + [b"\t", b"  "])
        fields = b"".join(separator + draw.choice([b"1", b"2.5", b"-3e-2", b"7"]) for _ in range(width))
        lines.append(word + fields + draw.choice([b""] * 8 + [b" ", b"\r", b"\t"]))
    return b"\n".join(lines) + draw.choice([b"\n", b"\n", b""])


def test_the_careful_parser_and_both_fast_ones_agree_on_malformed_lines(monkeypatch):
    pytest.importorskip("polars")
    draw = random.Random(0)
    cases = [(dirty_block(draw, width), width) for width in (1, 2, 3) for _ in range(1500)]
    with_polars = [outcome(parse_lines.parse, *case) for case in cases]
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "polars", None)
        assert [outcome(parse_lines.parse, *case) for case in cases] == with_polars
    monkeypatch.setattr(parse_lines, "_parse_fast", lambda block, dimension: None)
    assert [outcome(parse_lines.parse, *case) for case in cases] == with_polars
    readable = sum(len(result) == 3 for result in with_polars)
    assert 500 < readable < len(cases) - 500  # the data has both readable and bad blocks
