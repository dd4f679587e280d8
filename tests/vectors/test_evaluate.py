"""Similarity and analogies are scored with gensim's own figures on the same files."""

import numpy as np
import pytest

import frostline as fl
from frostline.vectors import Vectors
from frostline.vectors.evaluate import analogies, similarity

DRAW = np.random.default_rng(0)
WORDS = [*(f"w{index}" for index in range(60)), "W3", "Straße"]


@pytest.fixture
def vectors():
    return Vectors(WORDS, np.random.default_rng(1).normal(size=(len(WORDS), 5)))


@pytest.fixture
def theirs(vectors):
    models = pytest.importorskip("gensim.models")
    theirs = models.KeyedVectors(5)
    theirs.add_vectors(list(vectors.words), vectors.matrix)
    return theirs


@pytest.mark.parametrize("restrict", [300_000, 40])
def test_similarity_is_that_of_gensim(write, vectors, theirs, restrict):
    lines = ["# a comment", "word one\tword two\tscore"]
    for _ in range(80):
        first, second = DRAW.choice([*WORDS, "W7", "lava"], size=2)
        second = "lava" if first.upper() == second.upper() else second  # a word and itself: rounding decides the rank
        lines.append(f"{first}\t{second}\t{DRAW.integers(10) / 2}")
    path = write("\n".join(lines) + "\n", "pairs.tsv")
    found = similarity(vectors, path, restrict)
    _, spearman, unknown = theirs.evaluate_word_pairs(str(path), restrict_vocab=restrict)
    assert found.spearman == pytest.approx(spearman.statistic, abs=1e-6)
    assert (found.pairs, found.skipped) == (80, 1)
    assert 100 * (1 - found.found / found.pairs) == pytest.approx(unknown)


@pytest.mark.parametrize("restrict", [300_000, 40])
def test_analogies_are_those_of_gensim(write, vectors, theirs, restrict):
    lines = []
    for section in ("one", "two"):
        lines.append(f": {section}")
        for _ in range(150):
            a, b, c = DRAW.choice(WORDS, size=3, replace=False)
            near = theirs.most_similar(positive=[b, c], negative=[a], topn=3)
            lines.append(f"{a} {b} {c} {near[DRAW.integers(3)][0]}" if DRAW.random() < 0.9 else f"{a} {b} {c} lava")
    path = write("\n".join([*lines, "only three words"]) + "\n", "questions.txt")
    found = analogies(vectors, path, restrict)
    accuracy, sections = theirs.evaluate_word_analogies(str(path), restrict_vocab=restrict)
    assert found.accuracy == pytest.approx(accuracy)
    assert 0.1 < found.accuracy < 0.9
    assert (found.questions, found.skipped) == (300, 1)
    for section in sections[:2]:
        count = len(section["correct"])
        assert found.sections[section["section"]] == (count, count + len(section["incorrect"]))


def test_no_word_that_is_known_gives_no_score(write, vectors):
    pairs = write("lava magma 9\n", "pairs")
    assert np.isnan(similarity(vectors, pairs).spearman)
    assert similarity(vectors, pairs).found == 0
    assert np.isnan(analogies(vectors, write("lava a b c\n", "questions")).accuracy)


@pytest.mark.parametrize(("score", "content"), [(similarity, "a b c d\n"), (similarity, ""), (analogies, "a b c\n")])
def test_a_file_without_questions_is_an_error(write, vectors, score, content):
    with pytest.raises(fl.DataFileError, match="holds no"):
        score(vectors, write(content, "file"))


def test_a_missing_file_and_one_that_is_not_utf8_are_named(write, vectors):
    with pytest.raises(fl.DataFileError, match="no/such: cannot be opened"):
        similarity(vectors, "no/such")
    with pytest.raises(fl.DataFileError, match="file:2: not UTF-8"):
        analogies(vectors, write(b"a b c d\ncaf\xe9\n", "file"))
