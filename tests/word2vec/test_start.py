"""Known words stand still in every table that was given, and nothing is frozen at a value that was not."""

import numpy as np
import pytest

import frostline as fl
from frostline import word2vec
from frostline.vectors import Vectors
from frostline.word2vec import Settings
from frostline.word2vec.audit import audit

from .cases import sentences

SMALL = Settings(dim=6, min_count=1, epochs=3, alpha=0.05)
KNOWN = [f"w{index}" for index in range(0, 40, 2)]


@pytest.fixture(scope="module")
def vectors():
    """Vectors of every second word, and of two words that the text lacks."""
    words = [*KNOWN, "absent", "missing"]
    return Vectors(words, np.random.default_rng(0).normal(size=(len(words), 6)))


def train(start, learn="missing", text=None, **options):
    return word2vec.train(text or sentences(), SMALL, start=start, learn=learn, threads=2, **options)


def moved(run, words, table="input"):
    """Return which of the words have a row that is not as it was."""
    index = np.array([run.words.index(word) for word in words])
    now = getattr(run.problem, table)[index]
    return [word for word, a, b in zip(words, run.tables.initial(table, index), now, strict=True) if (a != b).any()]


def test_vectors_give_input_rows_known_ones_stand_still_and_all_output_rows_learn(backend, vectors):
    run = train(vectors)
    assert np.array_equal(run.vectors.matrix[run.vectors.rows_of(KNOWN)], vectors.matrix[vectors.rows_of(KNOWN)])
    missing = [word for word in run.words if word not in vectors]
    assert moved(run, missing) == missing
    assert moved(run, run.problem.corpus.words, "output") == run.problem.corpus.words
    found = audit(run)
    assert (found.frozen_compared, found.frozen_moved) == (22 * 6, 0)  # of the input table alone
    assert found.learned_rows == found.learned_rows_moved == len(missing) + len(run.problem.corpus.words)


def test_words_that_the_text_lacks_are_kept_unchanged_or_left_out(vectors):
    run = train(vectors)
    for word in ("absent", "missing"):
        assert np.array_equal(run.vectors[word], vectors[word])
    only = train(vectors, only_text=True)
    assert "absent" not in only.words
    assert only.words == run.words[:-2]
    assert np.array_equal(only.matrix, run.matrix[:-2])


def test_a_model_gives_both_tables_and_a_vocabulary_can_grow(backend, tmp_path):
    first = word2vec.train(sentences(), SMALL, run_folder=tmp_path / "first")
    later = [[*line, "new", "newer"] for line in sentences(words=30, seed=1)]
    run = train(tmp_path / "first", text=later)
    old = [word for word in run.words if word in first.words]
    assert set(old) == set(first.words)
    assert moved(run, old) == moved(run, old, "output") == []
    assert moved(run, ["new", "newer"]) == moved(run, ["new", "newer"], "output") == ["new", "newer"]
    for word in old:
        assert np.array_equal(run.vectors[word], first.vectors[word])
    free = train(tmp_path / "first", learn="all", text=later)
    again = [word for word in free.problem.corpus.words if word in first.words]
    assert moved(free, again) == moved(free, again, "output") == again


def test_an_output_row_that_was_never_trained_is_not_given(tmp_path, vectors):
    train(vectors, run_folder=tmp_path / "first")  # "absent" has an input row alone
    run = train(tmp_path / "first", text=[[*line, "absent"] for line in sentences()])
    assert moved(run, ["absent"]) == []
    assert moved(run, ["absent"], "output") == ["absent"]
    assert moved(run, KNOWN, "output") == []


def test_with_none_words_without_a_vector_are_left_out_and_output_rows_learn(vectors):
    run = train(vectors, learn="none")
    assert set(run.problem.corpus.words) == set(KNOWN)
    assert moved(run, KNOWN) == []
    assert moved(run, KNOWN, "output") == KNOWN


def test_with_all_known_words_learn_from_their_vectors(vectors):
    run = train(vectors, learn="all")
    assert np.array_equal(run.tables.initial("input", np.array([run.words.index("w0")]))[0, :6], vectors["w0"])
    assert moved(run, KNOWN) == KNOWN


def test_the_plan_says_what_learns(vectors):
    run = train(vectors)
    lines = {line.name: (line.learns, line.count) for line in run.plan.lines}
    missing = len([word for word in run.words if word not in vectors])
    assert lines["input.weight"] == ("rows", missing)
    assert lines["output.weight"][1] == len(run.problem.corpus.words)
    assert np.array_equal(run.model.input.weight.detach().numpy(), run.matrix)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"learn": "some"}, fl.SelectionError, "learn: 'some' is not one of"),
        ({"learn": "none", "start": None}, fl.SelectionError, "'none' needs known words"),
        ({"start": "no/such.txt"}, fl.VectorFileError, "no/such.txt: cannot be opened"),
        ({"threads": 0}, ValueError, "threads: 0 is out of range"),
        ({"out": "v.npy"}, fl.VectorFileError, "v.npy: its name ends in none of"),
        ({"out": "no/such/v.txt"}, fl.VectorFileError, "there is no folder no/such"),
        ({"resume": True}, fl.RunFolderError, "no run folder to resume from"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_read(vectors, options, error, says):
    with pytest.raises(error, match=says):
        word2vec.train([[1]], SMALL, **({"start": vectors} | options))


def test_another_width_and_a_number_that_is_not_finite_are_refused(tmp_path, vectors):
    (tmp_path / "wide.txt").write_text("w0 1 2 3\n")
    (tmp_path / "nan.txt").write_text("w0 1 2 3 nan 5 6\n")
    with pytest.raises(fl.SelectionError, match=r"wide.txt: its vectors have 3 dimensions, and 6 are asked for.*dim=3"):
        train(str(tmp_path / "wide.txt"))
    with pytest.raises(fl.VectorFileError, match=r"nan.txt:1: "):
        train(str(tmp_path / "nan.txt"))
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(fl.VectorFileError, match=r"model\.safetensors"):
        train(tmp_path)


def test_nothing_to_learn_is_an_error(tmp_path):
    word2vec.train(sentences(), SMALL, run_folder=tmp_path / "first")
    with pytest.raises(fl.SelectionError, match="with 'missing' nothing learns"):
        train(tmp_path / "first")
