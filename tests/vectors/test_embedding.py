"""An embedding starts from known vectors, and only the rows that were chosen learn."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import frostline as fl
from frostline.vectors import Vectors, embedding

KNOWN = [f"k{index}" for index in range(400)]
DRAW = np.random.default_rng(3)
VECTORS = Vectors(KNOWN, DRAW.normal(DRAW.normal(size=6), [0.01, 0.1, 0.5, 1, 2, 4], size=(400, 6)))
WORDS = ["<pad>", "k7", "new", "K3", "k0", "newer"]


def table(layer):
    return layer.weight.detach().clone()


def learning(layer):
    return {name: tuple(value.shape) for name, value in layer.named_parameters() if value.requires_grad}


def steps(layer, count=5):
    before = table(layer)
    optimizer = torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    for _ in range(count):
        optimizer.zero_grad()
        (layer(torch.arange(layer.num_embeddings)) ** 2 + layer(torch.tensor([0, 1, 2]))[:1]).sum().backward()
        optimizer.step()
    return (table(layer) != before).any(dim=1).tolist()


def test_known_words_keep_every_bit_while_missing_ones_learn_and_padding_stays_zero():
    layer = embedding(WORDS, VECTORS, padding_idx=0)
    assert isinstance(layer, nn.Embedding)
    assert learning(layer) == {"weight_learned": (3, 6)}
    assert steps(layer) == [False, False, True, True, False, True]
    after = table(layer)
    assert torch.equal(after[1], torch.from_numpy(VECTORS["k7"]))
    assert torch.equal(after[4], torch.from_numpy(VECTORS["k0"]))
    assert torch.equal(after[0], torch.zeros(6))
    assert layer.padding_idx == 0


def test_the_id_of_a_word_is_its_index():
    layer = embedding(KNOWN[::-1], VECTORS)
    assert torch.equal(table(layer), torch.from_numpy(VECTORS.matrix[::-1].copy()))


@pytest.mark.parametrize(
    ("learn", "padding", "moved"),
    [
        ("missing", None, [True, False, True, True, False, True]),
        ("missing", 2, [True, False, False, True, False, True]),
        ("missing", -1, [True, False, True, True, False, False]),
        ("missing", 1, [True, False, True, True, False, True]),
        ("all", None, [True] * 6),
        ("all", 1, [True, False, True, True, True, True]),
    ],
)
def test_the_argument_learn_chooses_the_rows_that_learn_and_padding_never_does(learn, padding, moved):
    torch.manual_seed(0)
    layer = embedding(WORDS, VECTORS, learn=learn, padding_idx=padding)
    if padding is not None:
        assert torch.equal(table(layer)[padding], torch.zeros(6))
    assert steps(layer) == moved


def test_learn_none_freezes_everything():
    layer = embedding(WORDS, VECTORS, learn="none", padding_idx=0)
    assert learning(layer) == {}
    assert torch.equal(table(layer)[1], torch.from_numpy(VECTORS["k7"]))
    assert (table(layer)[2] != 0).any()


def test_nothing_missing_leaves_nothing_to_learn():
    assert learning(embedding(KNOWN, VECTORS)) == {}
    assert learning(embedding(["<pad>", *KNOWN], VECTORS, padding_idx=0)) == {}


def test_lower_case_gives_a_capital_word_the_frozen_row_of_its_lower_case():
    layer = embedding(WORDS, VECTORS, padding_idx=0, lowercase=True)
    assert torch.equal(table(layer)[3], torch.from_numpy(VECTORS["k3"]))
    assert learning(layer) == {"weight_learned": (2, 6)}


def test_normal_rows_have_the_mean_and_spread_of_the_found_vectors_in_each_dimension():
    torch.manual_seed(1)
    found = KNOWN[:50]
    layer = embedding([*found, *(f"new{index}" for index in range(20_000))], VECTORS)
    drawn = table(layer)[50:].double()
    known = torch.from_numpy(VECTORS.matrix[:50]).double()
    assert torch.allclose(drawn.std(dim=0), known.std(dim=0, correction=0), rtol=0.03)
    assert ((drawn.mean(dim=0) - known.mean(dim=0)).abs() < 0.04 * known.std(dim=0)).all()


def test_the_same_seed_draws_the_same_rows_and_another_seed_others():
    drawn = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        drawn.append(table(embedding(WORDS, VECTORS)))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_single_found_word_gives_missing_ones_its_own_spread_rather_than_none():
    torch.manual_seed(0)
    layer = embedding(["k0", *(f"new{index}" for index in range(5000))], VECTORS)
    spread = VECTORS["k0"].std()
    assert torch.allclose(table(layer)[1:].std(dim=0), torch.full((6,), float(spread)), rtol=0.05)


def test_zeros_and_mean_start_where_they_say():
    assert torch.equal(table(embedding(WORDS, VECTORS, init="zeros"))[[0, 2, 3, 5]], torch.zeros(4, 6))
    mean = VECTORS.matrix[[7, 0]].astype("f8").mean(axis=0).astype("f4")
    assert torch.equal(
        table(embedding(WORDS, VECTORS, init="mean"))[[0, 2, 3, 5]], torch.from_numpy(mean).expand(4, -1)
    )


def test_the_layer_has_its_own_copy_of_the_vectors(tmp_path, monkeypatch):
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "v.txt"
    path.write_text("a 1 2\nb 3 4\n")
    vectors = fl.vectors.load(path)
    layer = embedding(["a", "b"], vectors, learn="all")
    with torch.no_grad():
        layer.weight.fill_(9)
    assert vectors["a"].tolist() == [1, 2]
    assert fl.vectors.load(path)["a"].tolist() == [1, 2]


def test_merge_and_a_new_plan_work_on_a_model_that_contains_it():
    model = nn.Sequential(embedding(WORDS, VECTORS, padding_idx=0), nn.Linear(6, 2))
    before = table(model[0])
    fl.train_only(model, {"0.weight": fl.rows([1])})
    assert learning(model) == {"0.weight_learned": (1, 6)}
    fl.merge(model)
    assert torch.equal(model[0].weight, before)
    assert list(model.state_dict()) == ["0.weight", "1.weight", "1.bias"]


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (
            lambda: embedding(["k1", "a", "k1", "a", "k2"], VECTORS),
            fl.SelectionError,
            "words: listed more than once: 'k1', 'a'. The id of a word is its index",
        ),
        (
            lambda: embedding([f"a{index % 9}" for index in range(40)], VECTORS),
            fl.SelectionError,
            "'a0', 'a1', 'a2', 'a3', 'a4' and 4 more.",
        ),
        (
            lambda: embedding(["x", "y"], VECTORS),
            fl.SelectionError,
            "words: none of the 2 words ('x', 'y') is among the 400 words of the vectors ('k0', 'k1', 'k2', ...).",
        ),
        (
            lambda: embedding(["<pad>", "x", "K2", "K3", "K4"], VECTORS, padding_idx=0),
            fl.SelectionError,
            "words: none of the 4 words ('x', 'K2', 'K3', ...) is among the 400 words of the vectors "
            "('k0', 'k1', 'k2', ...). 3 are in lower case: pass `lowercase=True`.",
        ),
        (
            lambda: embedding(WORDS, VECTORS, learn="rows"),
            fl.SelectionError,
            "learn: 'rows' is not one of 'missing', 'all'",
        ),
        (
            lambda: embedding(WORDS, VECTORS, init="ones"),
            fl.SelectionError,
            "init: 'ones' is not one of 'normal', 'zeros'",
        ),
        (lambda: embedding(WORDS, VECTORS, padding_idx=6), fl.SelectionError, "padding_idx: 6 is outside the 6 words"),
        (
            lambda: embedding(WORDS, VECTORS, padding_idx=-7),
            fl.SelectionError,
            "padding_idx: -7 is outside the 6 words",
        ),
        (lambda: embedding("k1", VECTORS), TypeError, "words: 'k1' is one string, not a sequence of strings."),
        (
            lambda: embedding({"k1": 0}, VECTORS),
            TypeError,
            "words: expected a list, got a mapping. Pass the words in the order of their ids",
        ),
        (lambda: embedding(["k1", 2], VECTORS), TypeError, "words: expected strings, got 2 of type int at index 1."),
        (lambda: embedding([], VECTORS), fl.SelectionError, "words: the list is empty."),
    ],
)
def test_the_error_of_an_invalid_call_says_why_and_what_to_do(call, kind, says):
    with pytest.raises(kind, match=re.escape(says)) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_vocabulary_of_all_known_words_and_a_new_one():
    layer = embedding([*VECTORS.words, "new"], VECTORS)
    assert torch.equal(table(layer)[:400], torch.from_numpy(VECTORS.matrix))
    assert learning(layer) == {"weight_learned": (1, 6)}
