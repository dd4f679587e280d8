"""Where training starts: new tables, or those of vectors or of a model, and which of their rows learn.

Letters used for shapes in this file:
    W  words of the text          V  rows of the input table          T  rows of the output table (W <= T <= V)

The words of the text come first. Behind them come the words that only the start has: first those of a model, which have
a row in both tables, then those that have an input row alone. They are in no sample, so their rows stay as they are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from frostline.errors import SelectionError
from frostline.word2vec.problem import Mask, Table, draw_rows, table
from frostline.word2vec.sampling import Ints
from frostline.word2vec.settings import Settings

if TYPE_CHECKING:
    from frostline.partial.selections import Selection
    from frostline.vectors import Vectors
    from frostline.word2vec.modules import CBOW, SkipGram

    Start = str | os.PathLike[str] | Vectors | CBOW | SkipGram

Learn = Literal["missing", "all", "none"]


@dataclass(frozen=True)
class Tables:
    """The tables at the start of training.

    Attributes:
        words: The words of the rows, shape (V,).
        input: See `problem.Problem`.
        output: Likewise.
        input_learns: Likewise.
        output_learns: Likewise.
        learns: The selections of `train_only` that say the same of the modules; None: everything learns.
        dim: Dimension, D.
        seed: Of the drawn rows.
        start: Where known words come from; None: nothing is known.
        known: The row of each word in the start, -1 where it is not there, shape (V,).
    """

    words: list[str]
    input: Table
    output: Table
    input_learns: Mask
    output_learns: Mask
    learns: Mapping[str, Selection] | None = None
    dim: int = 0
    seed: int = 0
    start: StartingPoint | None = None
    known: Ints | None = None

    def initial(self, name: Literal["input", "output"], index: Ints) -> Table:
        """Return rows of a table as they were at the start, shape (len(index), 16 S)."""
        table_ = getattr(self, name)
        rows = np.zeros((len(index), table_.shape[1]), dtype=table_.dtype)
        if name == "input":
            draw_rows(rows, self.dim, self.seed, index)
        if self.start is not None and self.known is not None:
            given = self.start.vectors.matrix if name == "input" else self.start.output
            row = self.known[index]
            found = (row >= 0) & (row < (0 if given is None else len(given)))
            if given is not None:
                rows[found, : self.dim] = given[row[found]]
        return rows


def new_tables(words: list[str], settings: Settings) -> Tables:
    """Return drawn input rows and zeros as output rows, all of which learn."""
    input = table(len(words), settings.dim, settings.dtype)
    draw_rows(input, settings.dim, settings.seed)
    ones, output = np.ones(len(words), dtype=np.uint8), table(len(words), settings.dim, settings.dtype)
    return Tables(words, input, output, ones, ones, None, settings.dim, settings.seed)


@dataclass(frozen=True)
class StartingPoint:
    """Known words and their rows.

    Attributes:
        vectors: The words and their input rows.
        output: Output rows of the first words, shape (number of them, D). None: there are none.
    """

    vectors: Vectors
    output: Table | None

    def tables(self, words: list[str], settings: Settings, learn: Learn, only_text: bool) -> Tables:
        """Return the tables for the words of a text.

        Args:
            words: The words of the text, shape (W,).
            settings: Dimension, dtype and seed.
            learn: "missing": rows that have a value stand still, the others learn. "all": all rows learn. "none": no
                input row learns; `words` then holds known words only. An output row without a value always learns.
            only_text: Leave out the words that the text lacks.

        Raises:
            SelectionError: Nothing would learn.
        """
        from frostline.partial import rows

        known = self.vectors.rows_of(words)
        only_here = np.setdiff1d(np.arange(0 if only_text else len(self.vectors)), known)
        row_of = np.concatenate([known, only_here])  # in the start; rows with an output come first there, too
        given = 0 if self.output is None else len(self.output)
        outputs = len(words) + int((only_here < given).sum())
        input, output = (table(count, settings.dim, settings.dtype) for count in (len(row_of), outputs))
        draw_rows(input[: len(words)], settings.dim, settings.seed)
        has_input, has_output = row_of >= 0, (row_of[:outputs] >= 0) & (row_of[:outputs] < given)
        input[has_input, : settings.dim] = self.vectors.matrix[row_of[has_input]]
        if self.output is not None:
            output[has_output, : settings.dim] = self.output[row_of[:outputs][has_output]]
        learns_input = np.ones(len(row_of), dtype=bool) if learn == "all" else ~has_input
        learns_output = np.ones(outputs, dtype=bool) if learn == "all" else ~has_output
        if learn == "none":
            learns_input[:] = False
        if not (learns_input.any() or learns_output.any()):
            raise SelectionError(
                f"learn: with {learn!r} nothing learns: every word of the text has a row in both tables already. "
                "Pass learn='all', or a text with other words."
            )
        names = [*words, *(self.vectors.words[row] for row in only_here.tolist())]
        learns = {"input.weight": rows(learns_input), "output.weight": rows(learns_output)}
        masks = [_mask(learns["input.weight"], len(input)), _mask(learns["output.weight"], len(output))]
        return Tables(names, input, output, masks[0], masks[1], learns, settings.dim, settings.seed, self, row_of)


def _mask(selection: Selection, count: int) -> Mask:
    """Return 1 for the rows that a selection lets learn."""
    import torch

    from frostline.partial.tensor.indices import LearnedIndices

    mask = np.zeros(count, dtype=np.uint8)
    resolved = selection.resolve(torch.empty(count, 1))
    mask[resolved.flat.numpy() if isinstance(resolved, LearnedIndices) else slice(None)] = resolved is not False
    return mask


def read_start(start: Start, dim: int) -> StartingPoint:
    """Return what to start from.

    Args:
        start: Vectors, or a model; or the path of either, or of the run folder that a model is in.
        dim: The dimension that is wanted.

    Raises:
        VectorFileError: The file cannot be read.
        SelectionError: It has another dimension.
    """
    from frostline.vectors import Vectors, load
    from frostline.word2vec.saved import is_model, load_model

    name = str(start) if isinstance(start, str | os.PathLike) else "start"
    if isinstance(start, str | os.PathLike):
        path = Path(start) / "model.safetensors" if Path(start).is_dir() else Path(start)
        start = load_model(path) if is_model(path) else load(path)
    if isinstance(start, Vectors):
        point = StartingPoint(start, None)
    elif start.words is None:
        raise SelectionError("start: the model has no words. Make it with a list of words, not with their number.")
    else:
        input, output = (module.weight.detach().numpy() for module in (start.input, start.output))
        point = StartingPoint(Vectors(start.words, np.asarray(input)), np.asarray(output))
    if point.vectors.dimension != dim:
        raise SelectionError(
            f"{name}: its vectors have {point.vectors.dimension} dimensions, and {dim} are asked for. "
            f"Pass dim={point.vectors.dimension}."
        )
    return point


def identity_of(start: Start | None) -> object:
    """Return plain values that differ where the start does, for a file; a run from memory is not resumed by others."""
    if start is None or not isinstance(start, str | os.PathLike):
        return None if start is None else "in memory"
    path = Path(start) / "model.safetensors" if Path(start).is_dir() else Path(start)
    found = path.stat()
    return [str(path.resolve()), found.st_size, found.st_mtime_ns]
