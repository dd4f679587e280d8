"""Parse a block of text lines into words and vectors: fast for clean blocks, else line by line with exact errors.

Letters used for shapes in this file:
    n  lines of the block          D  numbers on a line

The fast parser takes a block in which every line is plainly `word number ... number` and returns None for anything
else; the careful parser then goes line by line. Both return float32(float64(text)), the nearest double rounded to
single, as numpy and gensim do. The fast parser is polars, on all cores, if it is installed, else numpy, several times
slower.
"""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np

from frostline.vectors.table import Chunk, Floats

_NUMBER = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_NOT_FINITE = re.compile(rb"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_FIELD = re.compile(rb"[^ \t]+")  # only SPACE and TAB separate; all other whitespace belongs to a word
_NUMBER_BYTES = b"0123456789+-.eE \n"


class BadLine(Exception):
    """Line `line` (from 0) of a block cannot be read; the message says why."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def is_number(field: bytes) -> bool:
    """Return whether a field is a number, finite or not."""
    return bool(_NUMBER.fullmatch(field) or _NOT_FINITE.fullmatch(field))


def fields_of(line: bytes) -> list[bytes]:
    """Return the fields of a line."""
    return _FIELD.findall(line.removesuffix(b"\n").removesuffix(b"\r"))


def parse(block: bytes, dimension: int) -> Chunk:
    """Return the words and vectors of complete lines; raise BadLine for the first line that cannot be read."""
    return _parse_fast(_normalized(block), dimension) or _parse_carefully(block, dimension)


def _normalized(block: bytes) -> bytes:
    """Return the block with TAB as SPACE, CRLF as LF, a final LF, and no trailing spaces if its first line has some."""
    if b"\t" in block:
        block = block.replace(b"\t", b" ")
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    if not block.endswith(b"\n"):
        block += b"\n"
    while b" \n" in block[: block.find(b"\n") + 1]:
        block = block.replace(b" \n", b"\n")
    return block


def _parse_fast(block: bytes, dimension: int) -> Chunk | None:
    """Return the words and vectors of a clean block, None for any other."""
    try:
        import polars
    except ImportError:
        chunk = _parse_with_numpy(block, dimension)
    else:
        chunk = _parse_with_polars(polars, block, dimension)
    return chunk if chunk is not None and np.isfinite(chunk.matrix).all() else None


def _parse_with_polars(polars: Any, block: bytes, dimension: int) -> Chunk | None:
    schema = {"word": polars.String} | {str(column): polars.Float64 for column in range(dimension)}
    # polars drops a byte order mark at the start, and CR at the end of a field; here both belong to words.
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
        for column in range(dimension):
            matrix[:, column] = columns[column + 1].to_numpy()
    lengths = columns[0].str.len_bytes().to_numpy().astype(np.int64)
    return Chunk(columns[0].str.join("").item().encode(), lengths, matrix, len(frame))


def _parse_with_numpy(block: bytes, dimension: int) -> Chunk | None:
    lines = block.split(b"\n")[:-1]
    if any(line.count(b" ") != dimension for line in lines):
        return None
    words, _, rows = zip(*(line.partition(b" ") for line in lines), strict=True) if lines else ((), (), ())
    text = b"\n".join(rows)
    if b"" in words or b"" in rows or text.translate(None, _NUMBER_BYTES):
        return None
    try:
        b"\n".join(words).decode()
        table = np.loadtxt(io.BytesIO(text), dtype=np.float64, delimiter=" ", comments=None, ndmin=2)
    except ValueError:
        return None
    with np.errstate(over="ignore"):
        matrix = table.astype(np.float32)
    return Chunk(b"".join(words), np.fromiter(map(len, words), dtype=np.int64, count=len(words)), matrix, len(words))


def _parse_carefully(block: bytes, dimension: int) -> Chunk:
    """Return the words and vectors of a block, line by line; raise BadLine for the first that cannot be read."""
    words: list[bytes] = []
    rows: list[bytes] = []
    line_of_row: list[int] = []
    for index, line in enumerate(block.split(b"\n")):
        if fields_of(line):
            word, fields = _split(index, line.removesuffix(b"\r"), dimension)
            words.append(word)
            rows.append(b" ".join(fields))
            line_of_row.append(index)
    # Often only the words are unusual: with a plain word on each line, the numbers may still be parsed fast.
    chunk = _parse_fast(b"".join(b"w " + row + b"\n" for row in rows), dimension) if rows else None
    matrix = chunk.matrix if chunk else _parse_fields(rows, line_of_row, dimension)
    return Chunk(b"".join(words), np.array([len(word) for word in words], dtype=np.int64), matrix, block.count(b"\n"))


def _split(index: int, line: bytes, dimension: int) -> tuple[bytes, list[bytes]]:
    """Return the word of line `index`, which may contain spaces, and the last D fields."""
    fields = list(_FIELD.finditer(line))
    if len(fields) <= dimension:
        if len(fields) == dimension and line.startswith((b" ", b"\t")):
            raise BadLine(index, f"has {dimension} numbers and no word. Correct or delete the line.")
        count = len(fields) - 1
        raise BadLine(index, f"has {count} numbers after the word, expected {dimension}. Correct or delete the line.")
    word = line[fields[0].start() : fields[-dimension - 1].end()]
    if len(fields) > dimension + 1:
        last = fields[-dimension - 1][0]
        if is_number(last):  # a phrase may end with a year, but a number before the vector may be one value too many
            count = len(fields) - 1
            raise BadLine(
                index,
                f"has {count} numbers after the word, expected {dimension}. Correct or delete the line; "
                f"if {_shown(last)} belongs to the word, join the word's parts with _.",
            )
    try:
        word.decode()
    except UnicodeDecodeError:
        raise BadLine(
            index,
            f"the word {_shown(word)} is not UTF-8. Convert the file: `iconv -f latin1 -t utf-8 OLD > NEW` if it is "
            "Latin-1, `iconv -c -t utf-8 OLD > NEW` to drop the bad bytes.",
        ) from None
    return word, [field[0] for field in fields[-dimension:]]


def _parse_fields(rows: list[bytes], line_of_row: list[int], dimension: int) -> Floats:
    """Return the values of each row; raise BadLine for the first that is not a finite float32."""
    matrix = np.empty((len(rows), dimension), dtype=np.float32)
    for row, (line, text) in enumerate(zip(line_of_row, rows, strict=True)):
        for column, field in enumerate(text.split(b" ")):
            if _NUMBER.fullmatch(field):
                with np.errstate(over="ignore"):
                    matrix[row, column] = float(field)
                fault = "" if np.isfinite(matrix[row, column]) else "is beyond float32"
            else:
                fault = "is not a finite number" if _NOT_FINITE.fullmatch(field) else "is not a number"
            if fault:
                name = f"number {column + 1} of {dimension} is {_shown(field)}"
                raise BadLine(line, f"{name}, which {fault}. Correct or delete the line.")
    return matrix


def _shown(field: bytes) -> str:
    """Return a field for a message: quoted, at most 40 bytes of it."""
    return repr(field if len(field) <= 40 else field[:37] + b"...")[1:]
