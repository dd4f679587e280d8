"""A path, a dict and the vectors of gensim are taken wherever Vectors are."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import frostline as fl
from frostline.vectors import Vectors, cover, embedding, load, near, save
from frostline.vectors.sources import as_vectors

WORDS, MATRIX = ["ice", "snow", "fire"], [[1.0, 0.0], [3.0, 4.0], [-1.0, 0.5]]


def a_path(write):
    return write("".join(f"{word} {a} {b}\n" for word, (a, b) in zip(WORDS, MATRIX, strict=True)))


def keyed(write):
    gensim = pytest.importorskip("gensim.models")
    vectors = gensim.KeyedVectors(2)
    vectors.add_vectors(WORDS, np.array(MATRIX, dtype=np.float32))
    return vectors


class Word2Vec:
    """A model of gensim holds its vectors as `wv`."""

    def __init__(self, vectors):
        self.wv = vectors


SOURCES = {
    "Vectors": lambda write: Vectors(WORDS, MATRIX),
    "path": a_path,
    "path as text": lambda write: str(a_path(write)),
    "dict of lists": lambda write: dict(zip(WORDS, MATRIX, strict=True)),
    "dict of arrays": lambda write: dict(zip(WORDS, np.array(MATRIX, dtype=np.float16), strict=True)),
    "dict of tensors": lambda write: dict(zip(WORDS, torch.tensor(MATRIX, requires_grad=True), strict=True)),
    "gensim": keyed,
    "a model of gensim": lambda write: Word2Vec(keyed(write)),
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_whatever_holds_vectors_is_taken(write, tmp_path, make):
    source = make(write)
    assert as_vectors(source).matrix.tolist() == MATRIX
    assert cover(["snow", "rain"], source).missing == ["rain"]
    assert [word for word, _ in near(source, "ice")] == ["snow", "fire"]
    layer = embedding(["rain", "fire"], source, init="zeros")
    assert layer.weight.detach().tolist() == [[0, 0], MATRIX[2]]
    save(source, tmp_path / "saved.safetensors")
    assert load(tmp_path / "saved.safetensors")["snow"].tolist() == MATRIX[1]


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ({"a": [1, 2], "b": [1]}, fl.ShapeError, "the vector of 'b' has shape (1,), that of 'a' (2,)."),
        ({"a": 1.0}, fl.ShapeError, "the vector of 'a' has shape ()"),
        ({"a": [float("nan")]}, fl.ShapeError, "matrix: row 0 ('a') holds a value that is not finite."),
        ({1: [1.0]}, TypeError, "words: expected strings, got 1 of type int at index 0."),
        ([1.0], TypeError, "vectors: expected Vectors, a path, a dict of word to vector or gensim's KeyedVectors, got"),
        (None, TypeError, "got a NoneType. Pass Vectors(words, matrix)."),
    ],
)
def test_what_holds_no_vectors_is_an_error_that_says_what_does(source, error, says):
    with pytest.raises(error, match=re.escape(says)):
        as_vectors(source)


def partial_weight():
    layer = nn.Embedding(3, 2)
    fl.train_only(layer, {"weight": fl.rows([1])})
    with torch.no_grad():
        layer.weight_learned.fill_(7.0)
    return layer, layer.weight


LIVE = {
    "a parameter": lambda: (layer := nn.Embedding(3, 2), layer.weight),
    "a partial tensor": partial_weight,
    "bfloat16": lambda: (layer := nn.Embedding(3, 2).bfloat16(), layer.weight),
    "a transposed view": lambda: (layer := nn.Linear(3, 2), layer.weight.T),
    "a tensor without gradient": lambda: (None, torch.randn(3, 2)),
}


@pytest.mark.parametrize("make", LIVE.values(), ids=LIVE)
def test_the_matrix_of_a_live_model_is_taken_as_it_is_now(make):
    _, weight = make()
    now = weight.detach().float().clone()
    vectors = Vectors(["a", "b", "c"], weight)
    with torch.no_grad():
        weight.add_(1)
    assert np.array_equal(vectors.matrix, now.numpy())
    assert torch.equal(weight.detach().float(), (now.to(weight.dtype) + 1).float())  # it went on
    if isinstance(weight, fl.PartialTensor):
        assert vectors["b"].tolist() == [7.0, 7.0]
