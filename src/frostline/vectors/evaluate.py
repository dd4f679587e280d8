"""How good word vectors are: word similarity judged by people, and analogies. The figures are those of gensim.

Letters used for shapes in this file:
    R  words that are compared (the first ones)          D  dimensions of a vector          Q  questions at a time

As in gensim, words are compared in upper case, and where two words then are the same, the first stands for both.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frostline.errors import DataFileError
from frostline.vectors.table import Floats, Vectors

_SCORES = 1 << 24  # that are in memory at a time
_TOP = 5  # candidates that gensim looks at


@dataclass(frozen=True)
class Similarity:
    """Agreement with people's judgement of pairs of words.

    Attributes:
        spearman: Rank correlation of cosines and judgements, -1 to 1; nan if fewer than two pairs have vectors.
        found: Pairs of which both words have a vector.
        pairs: Pairs in the file.
        skipped: Lines of the file that are not a pair: two words and a number, separated by TAB or spaces.
    """

    spearman: float
    found: int
    pairs: int
    skipped: int


@dataclass(frozen=True)
class Analogies:
    """Questions "a is to b as c is to what?".

    Attributes:
        correct: Questions for which b - a + c is nearest to the right word.
        found: Questions of which all four words have a vector.
        questions: Questions in the file.
        skipped: Lines that are not four words.
        sections: Of each section of the file (its name follows a colon): correct and found.
    """

    correct: int
    found: int
    questions: int
    skipped: int
    sections: dict[str, tuple[int, int]]

    @property
    def accuracy(self) -> float:
        """Share of the questions found that are answered correctly, 0 to 1; nan if none is found."""
        return self.correct / self.found if self.found else float("nan")


def similarity(vectors: Vectors, path: str | os.PathLike[str], restrict: int = 300_000) -> Similarity:
    """Compare the cosines of pairs of words with people's judgement of their similarity.

    Args:
        vectors: The vectors.
        path: Lines of two words and a number, separated by TAB or else by spaces; lines after # are comments.
        restrict: Only the first words of the vectors, the most frequent ones, are used.

    Raises:
        DataFileError: The file cannot be read, or holds no pair.

    Cost: one look at each word.

    Example:
        >>> import tempfile
        >>> vectors = Vectors(["ice", "snow", "fire"], [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "pairs.tsv"
        ...     _ = path.write_text("ice snow 9\\nsnow fire 2\\nIce fire 1\\nice lava 1\\n")
        ...     similarity(vectors, path)
        Similarity(spearman=1.0, found=3, pairs=4, skipped=0)
    """
    pairs: list[tuple[str, str, float]] = []
    skipped = 0
    for line in _lines(path):
        fields = line.upper().split("\t") if "\t" in line else line.upper().split()
        try:
            first, second, judged = fields
            pairs.append((first.strip(), second.strip(), float(judged)))
        except ValueError:
            skipped += not line.startswith("#")
    if not pairs:
        raise DataFileError(f"{path}: holds no pairs. Pass lines of two words and a number, separated by TAB.")
    row_of = _rows(vectors, {word for pair in pairs for word in pair[:2]}, restrict)
    found = [(row_of[a], row_of[b], judged) for a, b, judged in pairs if a in row_of and b in row_of]
    rows = np.array([pair[:2] for pair in found], dtype=np.int64).reshape(-1, 2)
    cosines = (_unit(vectors.matrix[rows[:, 0]]) * _unit(vectors.matrix[rows[:, 1]])).sum(axis=1)
    judgements = np.array([judged for _, _, judged in found])
    return Similarity(_spearman(cosines, judgements), len(found), len(pairs), skipped)


def analogies(vectors: Vectors, path: str | os.PathLike[str], restrict: int = 300_000) -> Analogies:
    """Answer questions "a is to b as c is to what?" by the word nearest to b - a + c.

    Args:
        vectors: The vectors.
        path: Lines of four words a b c d, as in `questions-words.txt`; a line `: name` begins a section.
        restrict: Only the first words of the vectors, the most frequent ones, are asked and can be the answer.

    Raises:
        DataFileError: The file cannot be read, or holds no question.

    Cost: one product with the R x D matrix for each question.

    Source: Mikolov et al. 2013; 3CosAdd, as gensim's `evaluate_word_analogies`.
    """
    questions: list[tuple[str, list[str]]] = []
    skipped, section = 0, ""
    for line in _lines(path):
        if line.startswith(":"):
            section = line[1:].strip()
        elif len(words := line.upper().split()) == 4:
            questions.append((section, words))
        else:
            skipped += 1
    if not questions:
        raise DataFileError(f"{path}: holds no questions. Pass lines of four words, such as: king queen man woman.")
    row_of = _rows(vectors, {word for _, words in questions for word in words}, restrict)
    found = [(section, words) for section, words in questions if all(word in row_of for word in words)]
    right = _answer(vectors, [words for _, words in found], row_of, restrict)
    sections = {section: (0, 0) for section, _ in questions}
    for (name, _), correct in zip(found, right, strict=True):
        sections[name] = (sections[name][0] + correct, sections[name][1] + 1)
    return Analogies(sum(right), len(found), len(questions), skipped, sections)


def _lines(path: str | os.PathLike[str]) -> Iterable[str]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataFileError(f"{path}: cannot be opened: {error.strerror}. Check the path.") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataFileError(f"{path}:{line}: not UTF-8. Convert it: iconv -f latin1 -t utf-8") from None
    return (line for line in text.split("\n") if line.strip())


def _rows(vectors: Vectors, wanted: set[str], restrict: int) -> dict[str, int]:
    """Return the rows of the wanted words, which are in upper case."""
    rows: dict[str, int] = {}
    for row, word in enumerate(vectors.words):
        if row == restrict:
            break
        if (upper := word.upper()) in wanted:
            rows.setdefault(upper, row)
    return rows


def _unit(rows: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units: Floats = rows / np.where(lengths > 0, lengths, np.float32(1))
    return units


def _spearman(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Return the rank correlation; equal values share the mean of their ranks."""
    if len(x) < 2:
        return float("nan")
    ranks = [_ranks(values) for values in (x, y)]
    spread = ranks[0].std() * ranks[1].std()
    return (
        float(np.mean((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())) / spread) if spread else float("nan")
    )


def _ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank: NDArray[np.float64] = (last - (counts - 1) / 2)[group]
    return mean_rank


def _answer(vectors: Vectors, questions: Sequence[Sequence[str]], row_of: dict[str, int], restrict: int) -> list[bool]:
    """Return whether each question is answered correctly."""
    matrix = _unit(np.asarray(vectors.matrix[:restrict]))
    rows = np.array([[row_of[word] for word in words] for words in questions], dtype=np.int64).reshape(-1, 4)
    step, right = max(1, _SCORES // len(matrix)), []
    for first in range(0, len(rows), step):
        some = rows[first : first + step]
        a, b, c = (matrix[some[:, column]] for column in range(3))
        scores = _unit(b - a + c) @ matrix.T  # (Q, R)
        np.put_along_axis(scores, some[:, :3], -np.inf, axis=1)  # the words of the question are no answer
        count = min(_TOP, len(matrix))
        best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, axis=1)
        for candidates, words in zip(best.tolist(), questions[first : first + step], strict=True):
            answers = [vectors.words[row].upper() for row in candidates]
            answer = next((word for word in answers if word not in words[:3]), answers[-1])
            right.append(answer == words[3])
    return right
