"""From a block of text lines to words and numbers: a fast way, and a careful one that says what is wrong.

Letters used for shapes in this file:
    n  lines of the block          D  numbers of a line

The fast way takes a block in which every line is plainly `word number ... number` and gives None for anything else;
the careful way then goes line by line. Both give float32(float64(text)), the nearest double rounded to single, which
is what numpy and gensim give. polars parses on all cores where it is installed; numpy does the same, several times
slower, where it is not.
"""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np

from frostline.vectors.table import Chunk, Floats

_NUMBER = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_NOT_FINITE = re.compile(rb"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_FIELD = re.compile(rb"[^ \t]+")  # only SPACE and TAB separate; every other blank belongs to a word
_NUMBER_BYTES = b"0123456789+-.eE \n"


class BadLine(Exception):
    """What is wrong with line `number` (from 0) of a block."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


def is_number(field: bytes) -> bool:
    """Whether a field reads as a number, finite or not."""
    return bool(_NUMBER.fullmatch(field) or _NOT_FINITE.fullmatch(field))


def fields_of(line: bytes) -> list[bytes]:
    """The fields of a line."""
    return _FIELD.findall(line.removesuffix(b"\n").removesuffix(b"\r"))


def parse(block: bytes, dimension: int) -> Chunk:
    """The words and numbers of whole lines; BadLine for the first line that cannot be read."""
    return _fast(_plain(block), dimension) or _careful(block, dimension)


def _plain(block: bytes) -> bytes:
    """The block with one SPACE for each TAB, LF for CRLF, a last LF, and no blanks at line ends if line 1 has some."""
    if b"\t" in block:
        block = block.replace(b"\t", b" ")
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    if not block.endswith(b"\n"):
        block += b"\n"
    while b" \n" in block[: block.find(b"\n") + 1]:
        block = block.replace(b" \n", b"\n")
    return block


def _fast(block: bytes, dimension: int) -> Chunk | None:
    try:
        import polars
    except ImportError:
        chunk = _with_numpy(block, dimension)
    else:
        chunk = _with_polars(polars, block, dimension)
    return chunk if chunk is not None and np.isfinite(chunk.matrix).all() else None


def _with_polars(polars: Any, block: bytes, dimension: int) -> Chunk | None:
    schema = {"word": polars.String} | {str(place): polars.Float64 for place in range(dimension)}
    # polars drops a byte order mark at the start and CR at the end of a field, which here belong to words.
    if block.startswith(b"\xef\xbb\xbf") or b"\r" in block:
        return None
    try:
        frame = polars.read_csv(block, separator=" ", has_header=False, quote_char=None, schema=schema)
    except polars.exceptions.PolarsError:
        return None
    columns = frame.get_columns()
    if len(frame) != block.count(b"\n") or any(column.null_count() for column in columns):  # empty or short lines
        return None
    matrix = np.empty((len(frame), dimension), dtype=np.float32)
    with np.errstate(over="ignore"):
        for place in range(dimension):
            matrix[:, place] = columns[place + 1].to_numpy()
    lengths = columns[0].str.len_bytes().to_numpy().astype(np.int64)
    return Chunk(columns[0].str.join("").item().encode(), lengths, matrix, len(frame))


def _with_numpy(block: bytes, dimension: int) -> Chunk | None:
    lines = block.split(b"\n")[:-1]
    if any(line.count(b" ") != dimension for line in lines):
        return None
    words, _, numbers = zip(*(line.partition(b" ") for line in lines), strict=True) if lines else ((), (), ())
    text = b"\n".join(numbers)
    if b"" in words or b"" in numbers or text.translate(None, _NUMBER_BYTES):
        return None
    try:
        b"\n".join(words).decode()
        table = np.loadtxt(io.BytesIO(text), dtype=np.float64, delimiter=" ", comments=None, ndmin=2)
    except ValueError:
        return None
    with np.errstate(over="ignore"):
        matrix = table.astype(np.float32)
    return Chunk(b"".join(words), np.fromiter(map(len, words), dtype=np.int64, count=len(words)), matrix, len(words))


def _careful(block: bytes, dimension: int) -> Chunk:
    words: list[bytes] = []
    rows: list[bytes] = []
    places: list[int] = []
    for number, line in enumerate(block.split(b"\n")):
        if fields_of(line):
            word, numbers = _split(number, line.removesuffix(b"\r"), dimension)
            words.append(word)
            rows.append(b" ".join(numbers))
            places.append(number)
    # The words are set aside, so the numbers may still go the fast way.
    chunk = _fast(b"".join(b"w " + row + b"\n" for row in rows), dimension) if rows else None
    matrix = chunk.matrix if chunk else _one_by_one(rows, places, dimension)
    return Chunk(b"".join(words), np.array([len(word) for word in words], dtype=np.int64), matrix, block.count(b"\n"))


def _split(number: int, line: bytes, dimension: int) -> tuple[bytes, list[bytes]]:
    """The word of a line, which may hold blanks, and its last D fields."""
    found = list(_FIELD.finditer(line))
    if len(found) <= dimension:
        if len(found) == dimension and line.startswith((b" ", b"\t")):
            raise BadLine(number, f"has {dimension} numbers and no word. Mend or delete the line.")
        count = len(found) - 1
        raise BadLine(number, f"has {count} numbers after the word, expected {dimension}. Mend or delete the line.")
    numbers = [field[0] for field in found[-dimension:]]
    word = line[found[0].start() : found[-dimension - 1].end()]
    if len(found) > dimension + 1:
        last = found[-dimension - 1][0]
        if is_number(last) and not last.isdigit():
            count = len(found) - 1
            raise BadLine(
                number,
                f"has {count} numbers after the word, expected {dimension}. Mend or delete the line; "
                f"if {_shown(last)} belongs to the word, join the word's parts with _.",
            )
    try:
        word.decode()
    except UnicodeDecodeError:
        raise BadLine(
            number,
            f"the word {_shown(word)} is not UTF-8. Convert the file: `iconv -f latin1 -t utf-8 OLD > NEW` if it is "
            "Latin-1, `iconv -c -t utf-8 OLD > NEW` to drop the bad bytes.",
        ) from None
    return word, numbers


def _one_by_one(rows: list[bytes], places: list[int], dimension: int) -> Floats:
    """The numbers of each row; BadLine for the first that is not a finite float32."""
    matrix = np.empty((len(rows), dimension), dtype=np.float32)
    for row, (place, text) in enumerate(zip(places, rows, strict=True)):
        for column, field in enumerate(text.split(b" ")):
            if _NUMBER.fullmatch(field):
                with np.errstate(over="ignore"):
                    matrix[row, column] = float(field)
                fault = "" if np.isfinite(matrix[row, column]) else "is beyond float32"
            else:
                fault = "is not a finite number" if _NOT_FINITE.fullmatch(field) else "is not a number"
            if fault:
                raise BadLine(
                    place,
                    f"number {column + 1} of {dimension} is {_shown(field)}, which {fault}. Mend or delete the line.",
                )
    return matrix


def _shown(field: bytes) -> str:
    """A field for a message: quoted, not longer than a line can bear."""
    return repr(field if len(field) <= 40 else field[:37] + b"...")[1:]
