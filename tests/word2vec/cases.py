"""What tests of word2vec train on."""

import numpy as np

from frostline.word2vec import Settings, compiled
from frostline.word2vec.corpus import write_corpus
from frostline.word2vec.problem import problem, table


def sentences(lines=300, words=60, seed=0, longest=40):
    """Return lists of made-up words, a few of them frequent; each line is about one of six topics."""
    draw = np.random.default_rng(seed)
    share = 1 / np.arange(1, words + 1)
    found = []
    for _ in range(lines):
        topic = draw.integers(6)
        near = share * np.where(np.arange(words) % 6 == topic, 10, 1)
        ids = draw.choice(words, size=draw.integers(1, longest), p=near / near.sum())
        found.append([f"w{index}" for index in ids])
    return found


def made(folder, settings=None, *, learns=None, text=None, seed=0):
    """Return a problem with random tables, all of which learn unless `learns` says which rows do."""
    settings = settings or Settings(dim=20, min_count=1, epochs=2)
    folder.mkdir(exist_ok=True)
    corpus = write_corpus(sentences() if text is None else text, folder, settings.min_count)
    draw, tables = np.random.default_rng(seed), []
    for _ in range(2):
        rows = table(len(corpus.words), settings.dim, settings.dtype)
        rows[:, : settings.dim] = draw.normal(size=(len(rows), settings.dim)) * 0.3
        tables.append(rows)
    masks = [np.ones(len(corpus.words), dtype=np.uint8) if learns is None else learns.copy() for _ in tables]
    return problem(settings, corpus, *tables, *masks)


def position(key=7):
    """Return the beginning of an epoch."""
    return compiled.Position(key=key)
