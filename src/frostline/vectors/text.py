"""Word vectors as text: GloVe (no header), word2vec text and fastText .vec (a first line `V D`).

Letters used for shapes in this file:
    V  words          D  dimensions of a vector

A line is a word and D numbers, separated by SPACE or TAB only. A word may contain spaces: the last D fields are the
numbers. Whether the first line `5 300` is a header or a word with one number is decided by the lines that follow it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

from frostline.errors import VectorFileError
from frostline.vectors.parse_lines import BadLine, fields_of, is_number, parse
from frostline.vectors.table import Chunk

_BLOCK = 1 << 22  # bytes parsed at a time; also bounds the memory that reading needs
_LONGEST = 1 << 26  # bytes of a line; more means that the file is something else
_SAMPLE_LINES = 64  # lines from which D is detected
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read(stream: BinaryIO, path: str) -> Iterator[Chunk]:
    """Yield the words and vectors of a text file, in order.

    Raises:
        VectorFileError: With path and line, at the first line that cannot be read.

    Cost: four blocks of 4 MiB in memory; parsing uses all cores if polars is installed.
    """
    blocks = _blocks(stream, path)
    first = next(blocks, b"")
    if first.startswith(_BYTE_ORDER_MARK) and first[3:4] not in (b" ", b"\t"):  # followed by a space it is a word
        first = first[3:]
    promised, dimension = _detect_shape(first, path)
    if promised is not None:
        first = first.partition(b"\n")[2]
    lines = 0 if promised is None else 1  # read so far
    words = 0
    for block, parsed in _parse_ahead(first, blocks, dimension):
        try:
            chunk = parsed.result()
        except BadLine as error:
            raise VectorFileError(f"{path}:{lines + error.line + 1}: {error}{_hint_if_cut_off(block, error)}") from None
        lines += chunk.lines
        words += len(chunk.lengths)
        if len(chunk.lengths):
            yield chunk
    if promised is not None and words != promised:
        raise VectorFileError(
            f"{path}:1: the header says {promised:,} words, the file holds {words:,}. "
            "If the file is cut off, download it again; if it is complete, correct the header."
        )


def _blocks(stream: BinaryIO, path: str) -> Iterator[bytes]:
    """Yield the file in blocks of complete lines."""
    while data := stream.read(_BLOCK):
        rest = stream.readline(_LONGEST)
        if len(rest) == _LONGEST:
            raise VectorFileError(
                f"{path}: no word vectors: a line is longer than 64 MiB. Pass a file of word vectors."
            )
        yield data + rest


def _parse_ahead(first: bytes, blocks: Iterator[bytes], dimension: int) -> Iterator[tuple[bytes, Future[Chunk]]]:
    """Yield each block with its result, parsed while the next block is read and the previous one is consumed."""
    with ThreadPoolExecutor(2) as pool:
        waiting = deque([(first, pool.submit(parse, first, dimension))])
        for block in blocks:
            waiting.append((block, pool.submit(parse, block, dimension)))
            if len(waiting) > 2:
                yield waiting.popleft()
        yield from waiting


def _detect_shape(first: bytes, path: str) -> tuple[int | None, int]:
    """Return the count of words in the header (None without a header), and D."""
    lines = [fields for line in first.split(b"\n", _SAMPLE_LINES)[:_SAMPLE_LINES] if (fields := fields_of(line))]
    if not lines:
        raise VectorFileError(f"{path}:1: no word vectors: the file is empty. Download or write it again.")
    header = [int(field) for field in lines[0]] if len(lines[0]) == 2 and all(map(_is_count, lines[0])) else None
    counts = Counter(map(_numbers_at_end, lines[1:] if header else lines))
    dimension = max(counts, key=counts.__getitem__, default=0)  # the most frequent; on a tie the first seen
    if header and dimension == header[1]:
        return header[0], dimension
    if header and dimension != 1:
        raise VectorFileError(
            f"{path}:1: the header says {header[1]} numbers for a word, the lines hold {dimension}. "
            "Correct or delete the first line, or download the file again."
        )
    if dimension == 0:
        raise VectorFileError(
            f"{path}:1: no word vectors: expected a word and its numbers on a line, separated by spaces. "
            "Pass GloVe or word2vec text, fastText .vec, word2vec .bin or .safetensors."
        )
    return None, dimension


def _is_count(field: bytes) -> bool:
    return field.isdigit() and len(field) < 19


def _numbers_at_end(fields: list[bytes]) -> int:
    """Return how many fields at the end of a line are numbers, not counting the first field, which is the word."""
    count = 0
    while count < len(fields) - 1 and is_number(fields[-1 - count]):
        count += 1
    return count


def _hint_if_cut_off(block: bytes, error: BadLine) -> str:
    last = not block.endswith(b"\n") and error.line == block.count(b"\n")
    return " It is the last line and has no end: the file seems cut off, download it again." if last else ""
