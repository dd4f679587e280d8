"""`train`: from a text to word vectors, in a run folder from which a run that was stopped resumes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline.errors import RunFolderError, SelectionError, VectorFileError
from frostline.files import remove_unfinished
from frostline.word2vec.checkpoint import CHECKPOINT, Checkpoint
from frostline.word2vec.compiled import kernel
from frostline.word2vec.corpus import ABOUT, IDS, Corpus, Text, read_corpus, source_of, write_corpus
from frostline.word2vec.output import check_path, write_vectors
from frostline.word2vec.problem import problem
from frostline.word2vec.saved import save_model
from frostline.word2vec.settings import Settings
from frostline.word2vec.start import Learn, StartingPoint, identity_of, new_tables, read_start
from frostline.word2vec.training import Training, run

if TYPE_CHECKING:
    from frostline.word2vec.start import Start

MODEL = "model.safetensors"


def train(
    text: Text,
    settings: Settings | None = None,
    *,
    start: Start | None = None,
    learn: Learn = "missing",
    only_text: bool = False,
    out: str | os.PathLike[str] | None = None,
    run_folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    threads: int | None = None,
    callback: Callable[[Training], None] | None = None,
    every: int | None = None,
    checkpoint_every: float = 30.0,
) -> Training:
    """Train word vectors by word2vec: the same bits on any number of threads.

    Args:
        text: A file of UTF-8 text, plain or gzipped; "-" for standard input; or lists of words. Words are separated by
            whitespace; no context crosses the end of a line.
        settings: How to train; see `Settings`.
        start: Known words: vectors (`Vectors`, or a file of them), which give input rows, or a model (`CBOW`,
            `SkipGram`, `model.safetensors`, or the run folder it is in), which gives rows of both tables.
        learn: With `start`, which rows learn: "missing", those without a value in it, so known words keep every bit;
            "all"; or "none", no input row at all: words that are not known are left out, and the output rows learn.
        only_text: Leave out the words that `start` has and the text lacks; they are kept, unchanged, otherwise.
        out: Where to write the vectors, also when Ctrl-C ends the run: .txt or .vec (word2vec text), .bin (word2vec
            binary), either also with .gz, or .safetensors.
        run_folder: Where to write what `frostline report` shows, and at the end `model.safetensors`. While the run goes
            on, the encoded text (text.ids, text.json) and the checkpoint (word2vec.checkpoint) lie there. None: the
            encoded text lies in a temporary folder, and there is no checkpoint.
        resume: Go on from the checkpoint in the run folder, to the bits that the run would have had without a stop;
            if there is none, begin. The arguments must be the same; threads may differ.
        threads: Threads to train with. None: one for each core.
        callback: Is called with the `Training` after each step.
        every: Words of a step. None: about five steps a second. The result does not depend on it.
        checkpoint_every: Seconds between two checkpoints; the first is written before the first step.

    Returns:
        The run: `.vectors`, `.model` and `.plan`, `.history`.

    Raises:
        DataFileError: The text cannot be read, or has no word that is frequent enough.
        VectorFileError: `start` cannot be read, or `out` not be written.
        SelectionError: `start` has another dimension, or nothing would learn.
        RunFolderError: The run folder cannot be written to, or its checkpoint is damaged or of another run.
        FrostlineError: Training diverges, or subsampling leaves nothing to train on.

    Cost: on one core some 2 million words a second at 100 dimensions, with a C++ compiler; about a fiftieth of it in
        plain torch. Memory for both tables; the text stays on disk, 4 bytes a word.

    Example:
        >>> from frostline import word2vec
        >>> text = [["ice", "is", "cold"], ["snow", "is", "cold"]] * 5
        >>> run = word2vec.train(text, word2vec.Settings(dim=8, epochs=2, sample=0))
        >>> run.vectors, len(run.history), run.history[0].loss > 0
        (Vectors(4 words x 8), 2, True)
    """
    settings = settings or Settings()
    _check_arguments(start, learn, out, run_folder, resume, threads)
    with ExitStack() as stack:
        folder = Path(run_folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="frostline-word2vec-")))
        if not folder.exists():
            stack.callback(_remove_if_empty, folder)  # nothing could be trained
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{folder}: cannot be made: {error.strerror}. Name another folder.") from None
        remove_unfinished(folder, {CHECKPOINT, IDS, ABOUT, MODEL})
        begin = None if start is None else read_start(start, settings.dim)
        arguments = {
            "text": source_of(text),
            **settings.to_dict(),
            "start": identity_of(start),
            "learn": None if start is None else learn,
            "only_text": only_text,
        }
        checkpoint = Checkpoint(folder, arguments, checkpoint_every) if run_folder is not None else None
        resumed = resume and checkpoint is not None and checkpoint.check()
        if resumed:
            corpus = read_corpus(folder)
        else:
            (folder / CHECKPOINT).unlink(missing_ok=True)
            among = None if begin is None or learn != "none" else begin.vectors.__contains__
            corpus = write_corpus(text, folder, settings.min_count, among)
        training = _training(corpus, settings, begin, learn, only_text, threads)
        if checkpoint is not None:
            checkpoint.restore(training) if resumed else checkpoint.write(training)
        kernel()  # compiled now, not while it is timed
        try:
            for _ in run(training, callback, every):
                if checkpoint is not None:
                    checkpoint.write_if_due(training)
        except KeyboardInterrupt:
            if checkpoint is not None:
                checkpoint.write(training)
            if out is not None:
                write_vectors(out, training.words, training.matrix)
            raise
        if out is not None:
            write_vectors(out, training.words, training.matrix)
        if run_folder is not None:
            _finish(folder, training, str(text) if isinstance(text, str | os.PathLike) else "lists of words")
    return training


def _training(
    corpus: Corpus, settings: Settings, begin: StartingPoint | None, learn: Learn, only_text: bool, threads: int | None
) -> Training:
    words = corpus.words
    tables = new_tables(words, settings) if begin is None else begin.tables(words, settings, learn, only_text)
    arrays = (tables.input, tables.output, tables.input_learns, tables.output_learns)
    return Training(problem(settings, corpus, *arrays), tables, threads or _cores())


def _finish(folder: Path, training: Training, text: str) -> None:
    """Write what stays of a run, and remove what only resuming needs."""
    from frostline.word2vec.run_folder import write_run_folder

    dim, path = training.problem.settings.dim, folder / MODEL
    skip_gram = training.problem.settings.skip_gram
    try:
        save_model(path, training.words, training.matrix, training.problem.output[:, :dim], skip_gram)
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be written: {error.strerror}. Make room, and resume.") from None
    write_run_folder(folder, training, text)
    for name in (CHECKPOINT, IDS, ABOUT):
        (folder / name).unlink(missing_ok=True)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_arguments(
    start: object, learn: str, out: Any, run_folder: object, resume: bool, threads: int | None
) -> None:
    """Raise for what cannot work, before anything is read."""
    if learn not in ("missing", "all", "none"):
        raise SelectionError(f"learn: {learn!r} is not one of 'missing', 'all', 'none'.")
    if start is None and learn == "none":
        raise SelectionError("learn: 'none' needs known words. Pass `start`, or leave `learn` out.")
    if threads is not None and not 1 <= threads <= 1024:
        raise ValueError(f"threads: {threads} is out of range. Pass 1 to 1024.")
    if resume and run_folder is None:
        raise RunFolderError("resume: there is no run folder to resume from. Pass `run_folder`.")
    if out is not None:
        check_path(out)
    if isinstance(start, str | os.PathLike) and not Path(start).exists():
        raise VectorFileError(f"{start}: cannot be opened: no such file. Check the path.")
