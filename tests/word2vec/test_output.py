"""gensim loads every file that is written, and finds the same neighbours."""

import re

import numpy as np
import pytest

import frostline as fl
from frostline import word2vec
from frostline.word2vec.output import write_vectors

from .cases import sentences


@pytest.fixture(scope="module")
def run():
    return word2vec.train(sentences(1000), word2vec.Settings(dim=12, min_count=1, epochs=3))


@pytest.mark.parametrize("name", ["v.txt", "v.vec", "v.bin", "v.txt.gz", "v.bin.gz", "v.safetensors"])
def test_every_file_is_read_back_bit_for_bit(run, tmp_path, name):
    write_vectors(tmp_path / name, run.words, run.matrix)
    found = fl.vectors.load(tmp_path / name, cache=False)
    assert list(found.words) == run.words
    assert np.array_equal(found.matrix, run.matrix)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["v.txt", "v.vec", "v.bin", "v.txt.gz", "v.bin.gz"])
def test_gensim_loads_the_file_and_finds_the_same_neighbours(run, tmp_path, name):
    models = pytest.importorskip("gensim.models")
    write_vectors(tmp_path / name, run.words, run.matrix)
    theirs = models.KeyedVectors.load_word2vec_format(str(tmp_path / name), binary=".bin" in name)
    assert theirs.index_to_key == run.words
    assert np.array_equal(theirs.vectors, run.matrix)
    for word in run.words[:10]:
        ours = fl.vectors.near(run.vectors, word, 8)
        assert [other for other, _ in ours] == [other for other, _ in theirs.most_similar(word, topn=8)]
        assert np.allclose([cosine for _, cosine in ours], [c for _, c in theirs.most_similar(word, topn=8)], atol=1e-6)


def test_a_word_with_a_space_is_refused_where_the_form_cannot_hold_it(tmp_path):
    with pytest.raises(fl.VectorFileError, match=re.escape("the word 'ice cream' has whitespace")):
        write_vectors(tmp_path / "v.txt", ["ice", "ice cream"], np.zeros((2, 3), dtype=np.float32))
    assert list(tmp_path.iterdir()) == []
    write_vectors(tmp_path / "v.safetensors", ["ice", "ice cream"], np.ones((2, 3), dtype=np.float32))
    assert list(fl.vectors.load(tmp_path / "v.safetensors").words) == ["ice", "ice cream"]


def test_a_saved_model_is_the_model(run, tmp_path):
    trained = word2vec.train(
        sentences(), word2vec.Settings(dim=5, min_count=1, skip_gram=True), run_folder=tmp_path / "r"
    )
    model = word2vec.load_model(tmp_path / "r" / "model.safetensors")
    assert isinstance(model, word2vec.SkipGram)
    assert model.words == trained.words
    assert np.array_equal(model.input.weight.detach().numpy(), trained.matrix)
    assert np.array_equal(model.output.weight.detach().numpy(), trained.problem.output[:, :5])
    (tmp_path / "m").write_bytes((tmp_path / "r" / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(fl.VectorFileError, match="no word2vec model"):
        word2vec.load_model(tmp_path / "m")


def test_a_run_folder_can_be_reported(tmp_path):
    start = fl.vectors.Vectors(["w0", "w1"], np.random.default_rng(0).normal(size=(2, 5)))
    word2vec.train(sentences(), word2vec.Settings(dim=5, min_count=1, epochs=4), start=start, run_folder=tmp_path / "r")
    found = fl.record.read_run(tmp_path / "r")
    assert [point["epoch"] for point in found.curves] == [1, 2, 3, 4]
    assert found.audit["frozen_moved"] == 0
    assert found.audit["frozen_compared"] == 10
    assert found.row_changes.learns.sum() == len(found.row_changes.words) - 2
    assert found.row_changes.distances.min() > 0
    assert "w0" in found.row_changes.words[-2:]
    assert found.plan["tensors"]["input.weight"]["learns"] == "rows"
