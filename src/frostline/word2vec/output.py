"""Write vectors to a file: word2vec's text and binary forms, which gensim reads, and safetensors."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from frostline.errors import VectorFileError
from frostline.files import replacing
from frostline.word2vec.problem import Table

SUFFIXES = (".txt", ".vec", ".bin", ".safetensors")
_ROWS = 4096  # written at a time


def check_path(path: str | os.PathLike[str]) -> None:
    """Raise VectorFileError if vectors cannot be written there, before the work and not after it.

    Example:
        >>> check_path("v.npy")
        Traceback (most recent call last):
        frostline.errors.VectorFileError: v.npy: its name ends in none of .txt .vec .bin .safetensors .gz. Rename it.
    """
    target = Path(path)
    if _form(target) not in SUFFIXES or target.suffixes[-2:] == [".safetensors", ".gz"]:
        raise VectorFileError(f"{target}: its name ends in none of {' '.join(SUFFIXES)} .gz. Rename it.")
    if not target.parent.is_dir():
        raise VectorFileError(f"{target}: there is no folder {target.parent}. Make it first.")
    if target.is_dir():
        raise VectorFileError(f"{target}: is a folder. Name a file.")


def _form(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix


def write_vectors(path: str | os.PathLike[str], words: Sequence[str], matrix: Table) -> None:
    """Write words and their vectors; the name says in which form.

    Args:
        path: .txt or .vec: word2vec text, nine digits a number, which gives back every float32. .bin: word2vec binary.
            Either may end in .gz, too. .safetensors: `frostline.vectors` opens it in milliseconds.
        words: V words.
        matrix: Their vectors, shape (V, D), written as float32.

    Raises:
        VectorFileError: The name has another ending, a word has whitespace in it, or the file cannot be written.

    Cost: one pass. The file is replaced when the new one is complete.
    """
    check_path(path)
    target = Path(path)
    try:
        if _form(target) == ".safetensors":
            from frostline.vectors import Vectors, save

            return save(Vectors(words, matrix), target)
        binary = _form(target) == ".bin"
        if (spaced := next((word for word in words if word.split() != [word]), None)) is not None:
            raise VectorFileError(
                f"{target}: the word {spaced!r} has whitespace in it, which word2vec's forms cannot hold. Name a "
                ".safetensors file."
            )
        with replacing(target) as unfinished:
            packed = target.suffix == ".gz"
            with cast("IO[bytes]", gzip.open(unfinished, "wb")) if packed else unfinished.open("wb") as file:
                file.write(f"{len(words)} {matrix.shape[1]}\n".encode())
                for block in _blocks(words, matrix, binary):
                    file.write(block)
    except OSError as error:
        raise VectorFileError(f"{target}: cannot be written: {error.strerror}. Make room, or name another.") from None


def _blocks(words: Sequence[str], matrix: Table, binary: bool) -> Iterator[bytes]:
    line = " ".join(["%s", *["%.9g"] * matrix.shape[1]]) + "\n"
    for first in range(0, len(words), _ROWS):
        rows = matrix[first : first + _ROWS].astype("<f4")
        some = zip(words[first : first + _ROWS], rows, strict=True)
        if binary:
            yield b"".join(b"%s %s" % (word.encode(), row.tobytes()) for word, row in some)
        else:
            yield "".join(line % (word, *row.tolist()) for word, row in some).encode()
