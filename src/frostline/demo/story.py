"""The demo, step by step: read, train vectors, train one tagger in three regimes, audit, draw.

Every number it prints is computed in this run, the best regime too. rich wraps text, draws tables and shows a progress
bar on a terminal; in a pipe it prints plain lines.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from frostline import tagger
from frostline.demo import corpus, pictures
from frostline.demo.moved_words import MovedWords
from frostline.demo.regimes import REGIMES, Outcome, train_all, verdict
from frostline.demo.train_vectors import train_vectors
from frostline.errors import MissingExtraError
from frostline.files import replacing
from frostline.report import write_page
from frostline.tagger.data.vocabulary import FIRST_WORD
from frostline.tagger.training.run_folder import write_run_folder
from frostline.vectors import Vectors, cover
from frostline.vectors.nearest import nearest_rows

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH = 100
_USE = {"train": "to learn from", "dev": "to choose the best epoch", "test": "to report"}


@dataclass(frozen=True)
class Scale:
    """How much work to do; the defaults take two to three minutes on one core."""

    dimension: int = 100
    vector_epochs: int = 30
    epochs: int = 15
    seeds: tuple[int, ...] = (0, 1, 2)
    docstrings: int | None = None  # None: all of them
    sentences: int | None = None  # of train, dev and test each; None: all of them


def tell(out: Path, scale: Scale | None = None) -> dict[str, Any]:
    """Run the whole demo, print it, and write `results.json`, two pictures, the files of a run folder and its report.

    Args:
        out: Folder to write to; made if it is missing.
        scale: How much work to do.

    Returns:
        The content of `results.json`.

    Raises:
        MissingExtraError: rich or matplotlib is not installed.
    """
    scale, console, began = scale or Scale(), _console(), time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    parts, docstrings = _read(scale, console)
    vectors = _vectors(parts, docstrings, scale, console)
    outcomes = _train(parts, vectors, scale, console)
    moved = MovedWords.from_run(outcomes["missing"].runs[0], parts.train)
    results: dict[str, Any] = {
        "sentences": {name: len(part) for name, part in parts._asdict().items()},
        "vectors": {"words": len(vectors.words), "dimension": vectors.matrix.shape[1]},
        "regimes": {regime.learn: _figures(outcomes[regime.learn]) for regime in REGIMES},
        "audit": _audit(outcomes, moved, console),
        "moved_furthest": _moved_furthest(moved, console),
    }
    _draw(out, outcomes, moved, results["audit"])
    results["seconds"] = round(time.perf_counter() - began, 1)
    with replacing(out / "results.json") as unfinished:
        unfinished.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _write_run_folder(out, parts, vectors, outcomes)
    _heading(console, "5. Look at the report and the pictures")
    try:
        console.print(str(write_page(out, out / "report.html")), soft_wrap=True)
    except MissingExtraError as error:
        console.print(f"No report.html: {error}")
    for name in ("travel.png", "curves.png", "results.json"):
        console.print(str(out / name), soft_wrap=True)
    console.print(f"Done in {results['seconds']:.0f} seconds.")
    return results


def _console() -> Console:
    try:
        from rich.console import Console
    except ImportError:
        raise MissingExtraError("the demo needs rich. Install it: pip install 'frostline[demo]'") from None
    width = min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns)
    return Console(width=width, highlight=False, markup=False, emoji=False)


def _heading(console: Console, text: str) -> None:
    console.print(f"\n{text}", style="bold cyan")


def _table(console: Console, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; columns of numbers are aligned to the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
    for index, title in enumerate(titles):
        numeric = index > 0 and all(row[index][:1].isdigit() for row in rows)
        table.add_column(title, justify="right" if numeric else "left", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _read(scale: Scale, console: Console) -> tuple[corpus.Parts, list[str]]:
    _heading(console, "1. Read English that is on this machine already: the documentation of this Python")
    docstrings = corpus.library_docstrings()[: scale.docstrings]
    topics = corpus.python_topics()
    parts = corpus.Parts(*(part[: scale.sentences] for part in corpus.split(topics)))
    everything = [sentence for part in parts for sentence in part]
    console.print(
        f"For word vectors: {len(docstrings):,} docstrings of the standard library, "
        f"{sum(len(text.split()) for text in docstrings):,} words of plain text."
    )
    console.print(
        f"For a tagger: the prose of {len(topics)} help topics, {len(everything):,} different sentences. In them the "
        f"authors put {_terms(everything):,} code terms between quotes. The quotes are removed from the text, and "
        "the tagger has to find the terms without them:"
    )
    short = (s for s in everything if 8 <= len(s.tokens) <= 16 and s.tags.count(f"B-{corpus.LABEL}") >= 2)
    example = next(short, everything[0])
    marks = [" ^"[tag != "O"] * len(token) for token, tag in zip(example.tokens, example.tags, strict=True)]
    console.print(f"\n  {' '.join(example.tokens)}\n  {' '.join(marks).rstrip()}", soft_wrap=True)
    _table(
        console,
        ["part", "sentences", "words and signs", "code terms"],
        [
            [f"{name}, {_USE[name]}", f"{len(part):,}", f"{sum(len(s.tokens) for s in part):,}", f"{_terms(part):,}"]
            for name, part in parts._asdict().items()
        ],
    )
    return parts, docstrings


def _vectors(parts: corpus.Parts, docstrings: list[str], scale: Scale, console: Console) -> Vectors:
    _heading(console, "2. Train word vectors on the docstrings alone (word2vec)")
    began = time.perf_counter()
    vectors = train_vectors(corpus.plain_sentences(docstrings), scale.dimension, scale.vector_epochs)
    coverage = cover((token for sentence in parts.train for token in sentence.tokens), vectors, lowercase=True)
    console.print(
        f"{len(vectors.words):,} words got a vector of dimension {vectors.matrix.shape[1]}, in "
        f"{time.perf_counter() - began:.1f} s. They are the known words. The tagger's training sentences have "
        f"{coverage.words:,} different words; {len(coverage.missing):,} of them are missing from the vectors, such as "
        f"{', '.join(coverage.missing[:8])}."
    )
    return vectors


def _train(parts: corpus.Parts, vectors: Vectors, scale: Scale, console: Console) -> dict[str, Outcome]:
    from rich.progress import track

    _heading(console, "3. Train the same tagger (an LSTM) in three regimes: what may learn in the table of vectors?")
    _table(console, ["regime", "what it means"], [[regime.name, regime.meaning] for regime in REGIMES])
    runs: dict[str, list[tagger.TrainingRun]] = {regime.learn: [] for regime in REGIMES}
    for regime, seed, run in track(
        train_all(parts, vectors, scale.epochs, scale.seeds),
        "training",
        total=len(REGIMES) * len(scale.seeds),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ):
        if not runs[REGIMES[0].learn]:
            console.print(f"The plan of the first regime:\n\n{run.plan}\n", soft_wrap=True)
        runs[regime.learn].append(run)
        name, seconds = f"{regime.name}, seed {seed}", sum(epoch.seconds for epoch in run.history)
        console.print(
            f"{name:<28} {len(run.history)} epochs, loss {run.history[-1].loss:.3f}, "
            f"best dev F1 {100 * run.best.dev_f1:4.1f} %, {seconds:.1f} s"
        )
    outcomes = {learn: Outcome.from_runs(of_regime, parts) for learn, of_regime in runs.items()}
    console.print(
        "\nEntity F1 on the test sentences (missed and invented terms both count as errors, and both ends of a term "
        f"must be right) and seconds of training, mean of {len(scale.seeds)} runs with different random seeds. The two "
        "columns on the right count parameters in the table of word vectors: those that learn, and those of known "
        "words that moved."
    )
    _table(
        console,
        ["regime", "F1 %", "lowest", "highest", "seconds", "learn", "known moved"],
        [
            [
                name,
                f"{100 * mean(outcome.test_f1):.1f}",
                f"{100 * min(outcome.test_f1):.1f}",
                f"{100 * max(outcome.test_f1):.1f}",
                f"{mean(outcome.seconds):.1f}",
                f"{outcome.learned:,}",
                f"{outcome.known.frozen_moved:,}",
            ]
            for name, outcome in ((regime.name, outcomes[regime.learn]) for regime in REGIMES)
        ],
    )
    console.print(verdict({regime.name: outcomes[regime.learn].test_f1 for regime in REGIMES}))
    return outcomes


def _audit(outcomes: dict[str, Outcome], moved: MovedWords, console: Console) -> dict[str, Any]:
    _heading(console, "4. Audit: did the known words keep every bit, and where did the missing words move?")
    audits = [run.audit for run in outcomes["missing"].runs]
    first, known = audits[0], outcomes["all"].known
    frozen_moved = sum(audit.frozen_moved for audit in audits)
    code, prose = moved.sides()
    console.print(
        f"Missing words learn: {frozen_moved:,} of {first.frozen_compared:,} frozen values moved (compared bit by bit "
        f"after every run); {first.learned_rows_moved:,} of {first.learned_rows:,} rows that learn moved. "
        f"All words learn: {known.frozen_moved:,} of {known.frozen_compared:,} values of known words moved, though "
        f"the training sentences have only {(moved.seen > moved.learned[-1]).sum():,} of those words."
    )
    console.print(
        f"The learned words separated: along the direction in which they moved most, {code:.0%} of those that are "
        f"mostly code in the training text moved one way, {prose:.0%} of the others the other way."
    )
    return {
        "frozen_compared": first.frozen_compared,
        "frozen_moved": frozen_moved,
        "learned_rows": first.learned_rows,
        "learned_rows_moved": first.learned_rows_moved,
        "known_compared_when_all_learn": known.frozen_compared,
        "known_moved_when_all_learn": known.frozen_moved,
        "code_words_one_way": round(code, 4),
        "other_words_the_other_way": round(prose, 4),
    }


def _moved_furthest(moved: MovedWords, console: Console, count: int = 8) -> list[dict[str, Any]]:
    distances = moved.distances
    found: list[dict[str, Any]] = []
    for index in np.argsort(-distances, kind="stable")[:count]:
        row = int(moved.learned[index])
        before, after = (
            [moved.words[near - FIRST_WORD] for near in nearest_rows(table, row, 3, among=moved.seen)[0].tolist()]
            for table in (moved.before, moved.after)
        )
        word = moved.words[row - FIRST_WORD]
        found.append({"word": word, "moved": round(float(distances[index]), 3), "before": before, "after": after})
    console.print("\nThe words that moved furthest, with their nearest words before (random) and after training:")
    _table(
        console,
        ["word", "moved", "nearest before", "nearest after"],
        [[str(w["word"]), f"{w['moved']:.2f}", " ".join(w["before"]), " ".join(w["after"])] for w in found],
    )
    return found


def _draw(out: Path, outcomes: dict[str, Outcome], moved: MovedWords, audit: dict[str, Any]) -> None:
    f1 = ", ".join(f"{regime.name} {100 * mean(outcomes[regime.learn].test_f1):.1f} %" for regime in REGIMES)
    pictures.draw_curves(
        out / "curves.png",
        {regime.name: _mean_curve(outcomes[regime.learn].runs) for regime in REGIMES},
        f"Entity F1 on test: {f1}",
    )
    first_known = int(moved.learned[-1]) + 1  # the rows of known words follow those of missing words
    distances = np.linalg.norm(moved.map_after - moved.map_before, axis=1)[moved.learned]
    furthest = np.argsort(-distances, kind="stable")[:60]
    arrows = [
        pictures.Arrow(
            moved.words[row - FIRST_WORD],
            (float(moved.map_before[row, 0]), float(moved.map_before[row, 1])),
            (float(moved.map_after[row, 0]), float(moved.map_after[row, 1])),
            bool(is_code),
        )
        for row, is_code in zip(moved.learned[furthest].tolist(), moved.is_code[furthest], strict=True)
    ]
    seen_known = moved.seen[moved.seen >= first_known].tolist()
    named = [row for row in seen_known if moved.words[row - FIRST_WORD][1:2].isalpha()]
    pictures.draw_map(
        out / "travel.png",
        moved.map_before[first_known:],
        {moved.words[row - FIRST_WORD]: row - first_known for row in named[:160]},
        arrows,
        f"{audit['frozen_moved']:,} of {audit['frozen_compared']:,} frozen values moved; "
        f"{audit['code_words_one_way']:.0%} of learned code words moved right, "
        f"{audit['other_words_the_other_way']:.0%} of prose words left",
    )


def _write_run_folder(out: Path, parts: corpus.Parts, vectors: Vectors, outcomes: dict[str, Outcome]) -> None:
    """Write what `frostline report` shows: the first run in which missing words learn, and the curves of all three."""
    points = []
    for regime in REGIMES:
        curve = _mean_curve(outcomes[regime.learn].runs)
        for epoch, (loss, f1) in enumerate(zip(curve.loss, curve.dev_f1, strict=True), start=1):
            points.append({"run": regime.name, "epoch": epoch, "loss": loss, "F1 on dev": f1})
    first = outcomes["missing"].runs[0]
    facts = {name: f"{len(part):,} sentences, {_USE[name]}" for name, part in parts._asdict().items()}
    facts["vectors"] = f"{len(vectors.words):,} words, dimension {vectors.dimension}, from this Python's docstrings"
    facts["coverage"] = str(first.coverage)
    for regime in REGIMES:
        scores = outcomes[regime.learn].test_f1
        facts[f"F1 on test, {regime.name}"] = (
            f"{100 * mean(scores):.1f} % ({100 * min(scores):.1f} to {100 * max(scores):.1f} over {len(scores)} seeds)"
        )
    title = "A tagger over frozen word vectors"
    write_run_folder(out, first, title=title, facts=facts, curves=points)


def _mean_curve(runs: Sequence[tagger.TrainingRun]) -> pictures.Curve:
    """Return the mean over the runs, epoch by epoch."""
    epochs = list(zip(*(run.history for run in runs), strict=True))
    return pictures.Curve(
        [mean(e.loss for e in same) for same in epochs], [mean(e.dev_f1 for e in same) for same in epochs]
    )


def _figures(outcome: Outcome) -> dict[str, Any]:
    return {
        "test_f1": [round(f1, 4) for f1 in outcome.test_f1],
        "dev_f1": [round(run.best.dev_f1, 4) for run in outcome.runs],
        "seconds": [round(seconds, 2) for seconds in outcome.seconds],
        "plan": outcome.runs[0].plan.to_dict(),
    }


def _terms(sentences: Sequence[tagger.Sentence]) -> int:
    return sum(sentence.tags.count(f"B-{corpus.LABEL}") for sentence in sentences)
