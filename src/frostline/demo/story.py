"""The demo, step by step: read, train vectors, train one tagger in three regimes, audit, draw.

Every number it prints is computed here and now; whichever regime wins is the one it names.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from frostline import tagger
from frostline.demo import corpus, pictures
from frostline.demo.progress import Ticker
from frostline.demo.regimes import REGIMES, Outcome, end_of, train_all, verdict
from frostline.demo.travel import Journey, journey, nearest
from frostline.demo.voice import Voice
from frostline.demo.words import train_vectors
from frostline.errors import MissingExtraError
from frostline.report import write_page
from frostline.tagger.data.vocabulary import FIRST, cover
from frostline.vectors import Vectors

_WHY = {"train": "to learn from", "dev": "to choose the best epoch", "test": "to report"}


@dataclass(frozen=True)
class Scale:
    """How much work to do; the defaults take a minute or two on two cores."""

    dimension: int = 100
    vector_epochs: int = 30
    epochs: int = 15
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    docstrings: int | None = None  # None: all of them
    sentences: int | None = None  # of training, dev and test each; None: all of them


def tell(out: Path, scale: Scale | None = None) -> dict[str, Any]:
    """Run the whole demo, print it, and write `results.json`, two pictures, a run folder's files and its page.

    Args:
        out: Folder to write to; made if it is missing.
        scale: How much work to do.

    Returns:
        What `results.json` holds.

    Raises:
        MissingExtraError: gensim, rich or matplotlib is not installed.
    """
    scale, voice, began = scale or Scale(), Voice(), time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    parts, docstrings = _read(scale, voice)
    vectors = _vectors(parts, docstrings, scale, voice)
    outcomes = _train(parts, vectors, scale, voice)
    first = outcomes["missing"].runs[0]
    travels = journey(first, end_of(first).numpy(), parts.train)
    results: dict[str, Any] = {
        "sentences": {name: len(part) for name, part in parts._asdict().items()},
        "vectors": {"words": len(vectors.words), "dimension": vectors.matrix.shape[1]},
        "regimes": {regime.learn: _figures(outcomes[regime.learn]) for regime in REGIMES},
        "audit": _audit(outcomes, travels, voice),
        "moved_furthest": _movers(travels, voice),
    }
    _draw(out, outcomes, travels, results["audit"])
    results["seconds"] = round(time.perf_counter() - began, 1)
    _write(out / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    _leave(out, parts, vectors, outcomes)
    voice.heading("5. Look at the page and the pictures")
    try:
        write_page(out, out / "report.html")
        voice.lines(str(out / "report.html"))
    except MissingExtraError as error:
        voice.say(f"No report.html: {error}")
    voice.lines("\n".join(str(out / name) for name in ("travel.png", "curves.png", "results.json")))
    voice.say(f"Done in {results['seconds']:.0f} seconds.")
    return results


def _read(scale: Scale, voice: Voice) -> tuple[corpus.Parts, list[str]]:
    voice.heading("1. Read real English that is on this machine already: the documentation of this Python")
    docstrings = corpus.library_docstrings()[: scale.docstrings]
    topics = corpus.python_topics()
    parts = corpus.Parts(*(part[: scale.sentences] for part in corpus.split(topics)))
    everything = [sentence for part in parts for sentence in part]
    voice.say(
        f"For word vectors: {len(docstrings):,} docstrings of the standard library, "
        f"{sum(len(text.split()) for text in docstrings):,} words of plain text."
    )
    voice.say(
        f"For a tagger: the prose of {len(topics)} help topics, {len(everything):,} different sentences. In them the "
        f"authors put {_terms(everything):,} code terms between quotes. The quotes are taken out of the text; "
        "the tagger has to find the terms without them:"
    )
    short = (s for s in everything if 8 <= len(s.tokens) <= 16 and s.tags.count(f"B-{corpus.LABEL}") >= 2)
    example = next(short, everything[0])
    marks = [" ^"[tag != "O"] * len(token) for token, tag in zip(example.tokens, example.tags, strict=True)]
    voice.lines(f"\n  {' '.join(example.tokens)}\n  {' '.join(marks).rstrip()}\n")
    voice.table(
        ["part", "sentences", "words and signs", "code terms"],
        [
            [f"{name}, {_WHY[name]}", f"{len(part):,}", f"{sum(len(s.tokens) for s in part):,}", f"{_terms(part):,}"]
            for name, part in parts._asdict().items()
        ],
    )
    return parts, docstrings


def _vectors(parts: corpus.Parts, docstrings: list[str], scale: Scale, voice: Voice) -> Vectors:
    voice.heading("2. Train word vectors on the docstrings alone (word2vec, by gensim)")
    began = time.perf_counter()
    vectors = train_vectors(corpus.plain_sentences(docstrings), scale.dimension, scale.vector_epochs)
    coverage = cover((token for sentence in parts.train for token in sentence.tokens), vectors.words)
    voice.say(
        f"{len(vectors.words):,} words got {vectors.matrix.shape[1]} numbers each, in "
        f"{time.perf_counter() - began:.1f} s. From here on they are the known words. The tagger's training "
        f"sentences have {coverage.words:,} different words; {len(coverage.missing):,} of them are missing from the "
        f"vectors, such as {', '.join(coverage.missing[:8])}."
    )
    return vectors


def _train(parts: corpus.Parts, vectors: Vectors, scale: Scale, voice: Voice) -> dict[str, Outcome]:
    voice.heading("3. Train the same tagger (an LSTM) three ways: what may learn in the table of word vectors?")
    voice.table(["way", "what it means"], [[regime.name, regime.meaning] for regime in REGIMES])
    voice.say("The plan of the first way (at Adam: the numbers that the optimizer Adam keeps for it):")
    steps = scale.epochs * sum(len(sentence.tokens) for sentence in parts.train)
    with Ticker(voice, scale.epochs, len(REGIMES) * len(scale.seeds) * steps) as ticker:
        outcomes = train_all(parts, vectors, scale.epochs, scale.seeds, ticker.named)
    voice.say(
        "Entity F1 on the test sentences (it counts terms missed and terms invented; a term's both ends must be right) "
        f"and seconds of training, mean of {len(scale.seeds)} runs with different random seeds. The numbers counted at "
        "the right are those of the table of word vectors."
    )
    voice.table(
        ["way", "F1 %", "lowest", "highest", "seconds", "numbers that learn", "known ones that moved"],
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
    voice.say(verdict({regime.name: outcomes[regime.learn].test_f1 for regime in REGIMES}))
    return outcomes


def _audit(outcomes: dict[str, Outcome], travels: Journey, voice: Voice) -> dict[str, Any]:
    voice.heading("4. Audit: did the known words stand still, and where did the missing words go?")
    audits = [run.audit for run in outcomes["missing"].runs]
    first, other = audits[0], outcomes["all"].known
    moved = sum(audit.frozen_moved for audit in audits)
    code, prose = travels.sides()
    voice.say(
        f"Missing words learn: {moved:,} of {first.frozen_compared:,} frozen numbers moved (compared bit by bit after "
        f"every run); {first.learned_rows_moved:,} of {first.learned_rows:,} rows that learn moved. "
        f"All words learn: {other.frozen_moved:,} of {other.frozen_compared:,} numbers of known words moved, though "
        f"the training sentences have only {(travels.heard > travels.learned[-1]).sum():,} of those words."
    )
    voice.say(
        f"And the learned words parted: along the direction in which they moved most, {code:.0%} of those that are "
        f"mostly code in the training text went one way, {prose:.0%} of the others the other way."
    )
    return {
        "frozen_compared": first.frozen_compared,
        "frozen_moved": moved,
        "learned_rows": first.learned_rows,
        "learned_rows_moved": first.learned_rows_moved,
        "known_compared_when_all_learn": other.frozen_compared,
        "known_moved_when_all_learn": other.frozen_moved,
        "code_words_one_way": round(code, 4),
        "other_words_the_other_way": round(prose, 4),
    }


def _movers(travels: Journey, voice: Voice, count: int = 8) -> list[dict[str, Any]]:
    moved = travels.moved
    found: list[dict[str, Any]] = []
    for index in np.argsort(-moved, kind="stable")[:count]:
        row = int(travels.learned[index])
        before, after = (
            [travels.words[near - FIRST] for near in nearest(table, row, travels.heard, count=3)]
            for table in (travels.start, travels.end)
        )
        word = travels.words[row - FIRST]
        found.append({"word": word, "moved": round(float(moved[index]), 3), "before": before, "after": after})
    voice.say("The words that moved furthest, with the words nearest to them before (a random place) and after:")
    voice.table(
        ["word", "moved", "nearest before", "nearest after"],
        [[str(w["word"]), f"{w['moved']:.2f}", " ".join(w["before"]), " ".join(w["after"])] for w in found],
    )
    return found


def _draw(out: Path, outcomes: dict[str, Outcome], travels: Journey, audit: dict[str, Any]) -> None:
    f1 = ", ".join(f"{regime.name} {100 * mean(outcomes[regime.learn].test_f1):.1f} %" for regime in REGIMES)
    pictures.curves(
        out / "curves.png",
        {regime.name: _curve(outcomes[regime.learn].runs) for regime in REGIMES},
        f"Entity F1 on test: {f1}",
    )
    known = int(travels.learned[-1]) + 1  # the first row of a known word
    furthest = np.argsort(-np.linalg.norm(travels.end_map - travels.start_map, axis=1)[travels.learned], kind="stable")
    travellers = [
        pictures.Traveller(
            travels.words[row - FIRST],
            (float(travels.start_map[row, 0]), float(travels.start_map[row, 1])),
            (float(travels.end_map[row, 0]), float(travels.end_map[row, 1])),
            bool(code),
        )
        for row, code in ((int(travels.learned[i]), travels.code[i]) for i in furthest[:60])
    ]
    named = [row for row in travels.heard.tolist() if row >= known and travels.words[row - FIRST][1:2].isalpha()]
    pictures.travel(
        out / "travel.png",
        travels.start_map[known:],
        {travels.words[row - FIRST]: row - known for row in named[:160]},
        travellers,
        f"{audit['frozen_moved']:,} of {audit['frozen_compared']:,} frozen numbers moved; "
        f"{audit['code_words_one_way']:.0%} of learned code words went right, "
        f"{audit['other_words_the_other_way']:.0%} of prose words left",
    )


def _leave(out: Path, parts: corpus.Parts, vectors: Vectors, outcomes: dict[str, Outcome]) -> None:
    """Leave what `frostline report` shows: the first run in which missing words learn, and the curves of all three."""
    points = []
    for regime in REGIMES:
        curve = _curve(outcomes[regime.learn].runs)
        for epoch, (loss, f1) in enumerate(zip(curve.loss, curve.dev_f1, strict=True), start=1):
            points.append({"run": regime.name, "epoch": epoch, "loss": loss, "F1 on dev": f1})
    first = outcomes["missing"].runs[0]
    facts = {name: f"{len(part):,} sentences, {_WHY[name]}" for name, part in parts._asdict().items()}
    facts["vectors"] = f"{len(vectors.words):,} words x {vectors.dimension} numbers, from this Python's docstrings"
    facts["coverage"] = str(first.coverage)
    for regime in REGIMES:
        scores = outcomes[regime.learn].test_f1
        facts[f"F1 on test, {regime.name}"] = (
            f"{100 * mean(scores):.1f} % ({100 * min(scores):.1f} to {100 * max(scores):.1f} over {len(scores)} seeds)"
        )
    title = "A tagger over word vectors that stand still"
    tagger.leave(out, first, title=title, facts=facts, curves=points)


def _curve(runs: Sequence[tagger.TrainingRun]) -> pictures.Curve:
    """The mean over the runs, epoch by epoch."""
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


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
