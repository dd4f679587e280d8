"""Lines come as they were written, however they arrive, and what is at hand is worked on before more is waited for."""

from __future__ import annotations

import io
import random

import pytest

from frostline.cli.tagger.arriving import Arriving


class _Slow(io.RawIOBase):
    """Gives one piece a read, as a pipe does, and notes each."""

    def __init__(self, pieces: list[bytes], seen: list[object]) -> None:
        self._pieces, self._seen = list(pieces), seen

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        piece = self._pieces.pop(0) if self._pieces else b""
        self._seen.append(piece)
        buffer[: len(piece)] = piece
        return len(piece)


def test_what_came_is_given_before_the_next_read() -> None:
    seen: list[object] = []
    arriving = Arriving(io.BufferedReader(_Slow([b"a\nb\n", b"c", b"d\n", b"e"], seen)))
    for chunk in arriving.chunks(arriving):
        seen.append(chunk)
    assert seen == [b"a\nb\n", [b"a", b"b"], b"c", b"d\n", [b"cd"], b"e", b"", [b"e"], b""]


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_however_a_text_is_cut_its_lines_are_the_same(end: bytes) -> None:
    dice = random.Random(0)
    for _ in range(200):
        lines = [b"x" * dice.choice([0, 1, 7]) for _ in range(dice.randrange(1, 9))] + [b"last"]
        text = b"\n".join(lines) + end
        cuts = sorted(dice.randrange(len(text) + 1) for _ in range(4))
        pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        reader = io.BufferedReader(_Slow([piece for piece in pieces if piece], []))
        assert list(Arriving(reader)) == lines


def test_a_chunk_is_no_longer_than_512_lines_and_nothing_is_lost_of_a_long_file() -> None:
    lines = [str(number).encode() for number in range(100_000)]
    arriving = Arriving(io.BytesIO(b"\n".join(lines)))
    chunks = list(arriving.chunks(arriving))
    assert max(map(len, chunks)) == 512
    assert [line for chunk in chunks for line in chunk] == lines


def test_what_is_made_of_several_lines_is_given_as_soon_as_it_is_made() -> None:
    seen: list[object] = []
    arriving = Arriving(io.BufferedReader(_Slow([b"a\nb\n", b"c\nd\n"], seen)))
    for chunk in arriving.chunks(first + second for first, second in zip(arriving, arriving, strict=True)):
        seen.append(chunk)
    assert seen[:4] == [b"a\nb\n", [b"ab"], b"c\nd\n", [b"cd"]]
