"""A step of training: by the compiled kernel, or by its twin in plain torch."""

from __future__ import annotations

from ctypes import byref

from frostline.errors import FrostlineError
from frostline.word2vec import compiled
from frostline.word2vec.compiled import Position, RunFields
from frostline.word2vec.problem import LANES, Problem


def train(problem: Problem, at: Position, words: int, threads: int) -> bool:
    """Train until at least `words` words were read, or the text ends; return whether it has ended.

    Args:
        problem: The tables of it are changed.
        at: Where to begin; brought up to date.
        words: 1 or more; a batch is trained to its end.
        threads: Threads to compute with, of the compiled kernel. The results are the same for any number.

    Raises:
        FrostlineError: The text holds an id without a row, or memory for a batch is missing.
    """
    library = None if problem.settings.softmax else compiled.kernel()
    if library is None:
        from frostline.word2vec import reference  # it needs torch

        return reference.train(problem, at, words)
    settings, corpus = problem.settings, problem.corpus
    run = RunFields(
        corpus.ids.ctypes.data,
        len(corpus.ids),
        *(array.ctypes.data for array in (problem.input, problem.output, problem.input_learns, problem.output_learns)),
        len(corpus.words),
        problem.input.shape[1] // LANES,
        problem.keep.ctypes.data,
        problem.alias.ctypes.data,
        settings.window,
        settings.negatives,
        settings.skip_gram,
        threads,
        problem.batch_words,
        settings.rate,
        settings.min_alpha,
        problem.total_words,
    )
    code = getattr(library, f"frostline_word2vec_{settings.dtype}")(byref(run), byref(at), words)
    if code < 0:
        raise FrostlineError(
            "text.ids: holds an id without a row; it is damaged. Train from the start."
            if code == -1
            else "memory: too little for a batch. Pass a smaller dim or window, or fewer negatives."
        )
    return bool(code)
