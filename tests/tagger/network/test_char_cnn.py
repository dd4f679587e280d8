"""Features of a word's bytes equal those of a loop over words, positions and filters, and learn what spelling shows."""

from __future__ import annotations

import dataclasses
import random
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from frostline import tagger
from frostline.tagger import LSTMTagger, TaggerConfig
from frostline.tagger.data.batches import encode, pad
from frostline.tagger.data.spelling import token_bytes
from frostline.tagger.data.vocabulary import Vocabulary
from frostline.tagger.network.char_cnn import CharCNN
from frostline.vectors import Vectors

LONG = "".join(chr(ord("a") + i % 26) for i in range(5_000))
WORDS = ["a", "ville", "", "naïve", "日本語", "\x00", "\udc80", "👩‍🚀", "x" * 32, LONG, "aa", "ÿ"]


def _module() -> CharCNN:
    torch.manual_seed(0)
    return CharCNN(5).double()


def _slowly(weight: Tensor, word: str) -> Tensor:
    """Features of one word, shape (C,), of weights of shape (3, 256, C), byte by byte."""
    data = list(word.encode("utf-8", "surrogatepass"))
    if len(data) > 32:
        data = data[:16] + data[-16:]
    around = [255, *data, 255]
    best = torch.zeros(weight.shape[2], dtype=torch.float64)
    for filter_ in range(weight.shape[2]):
        answers = [sum(weight[k, around[start + k], filter_] for k in range(3)) for start in range(len(data))]
        if answers:
            best[filter_] = max(answers)
    return best


def test_features_are_those_of_a_loop_over_words_positions_and_filters() -> None:
    module = _module()
    expected = torch.stack([_slowly(module.weight.detach(), word) for word in WORDS])
    torch.testing.assert_close(module(token_bytes(WORDS)).detach(), expected, rtol=0, atol=1e-12)
    assert (expected[[i for i, word in enumerate(WORDS) if word]] != 0).all()


def test_the_gradient_is_that_of_small_differences_and_reaches_only_the_bytes_of_the_words() -> None:
    module, spellings = _module(), token_bytes(["ab", "", "abcab"])
    assert torch.autograd.gradcheck(lambda w: functional_call(module, {"weight": w}, spellings), module.weight[..., :2])
    module(spellings).sum().backward()
    assert module.weight.grad is not None
    touched = module.weight.grad.abs().sum(dim=2)  # (3, 256)
    assert set(touched[1].nonzero().flatten().tolist()) <= set(b"abc")
    assert touched.sum(dim=1).tolist() == [10, 10, 10], "each of 5 filters has a window in each of 2 words"


def test_a_word_has_the_same_features_alone_as_with_longer_words_and_padding() -> None:
    module = _module()
    shuffled = [WORDS[i] for i in torch.randperm(len(WORDS), generator=torch.Generator().manual_seed(1))]
    alone = {word: module(token_bytes([word]))[0] for word in WORDS}
    assert all(torch.equal(row, alone[word]) for row, word in zip(module(token_bytes(shuffled)), shuffled, strict=True))
    vocabulary = Vocabulary(["a"], missing=0)
    batch = pad([encode(tokens, vocabulary, characters=True) for tokens in (WORDS[:1], WORDS, WORDS[3:8])])
    assert batch.spellings is not None
    together = module(batch.spellings)  # (3, 12, C)
    for row, words in zip(together, (WORDS[:1], WORDS, WORDS[3:8]), strict=True):
        assert torch.equal(row[: len(words)], torch.stack([alone[word] for word in words]))
        assert (row[len(words) :] == 0).all()


@pytest.mark.parametrize("words", [[""], ["", ""]])
def test_empty_words_have_features_of_0_and_no_gradient(words: list[str]) -> None:
    module = _module()
    found = module(token_bytes(words))
    assert torch.equal(found, torch.zeros(len(words), 5, dtype=torch.float64))
    found.sum().backward()
    assert module.weight.grad is not None
    assert not module.weight.grad.any()


def test_both_ends_of_a_long_word_are_read_and_the_middle_is_not() -> None:
    middle, start, end = LONG[:2_000] + "!" + LONG[2_001:], "!" + LONG[1:], LONG[:-1] + "!"
    assert torch.equal(token_bytes([LONG]), token_bytes([middle]))
    assert not torch.equal(token_bytes([LONG]), token_bytes([start]))
    assert not torch.equal(token_bytes([LONG]), token_bytes([end]))


def _towns(count: int, dice: random.Random) -> list[tagger.Sentence]:
    """Sentences in which a made-up word is a town if it ends in -ville, and nothing if it ends otherwise."""
    found = []
    for _ in range(count):
        stem = "".join(dice.choice("bdklmnrst") + dice.choice("aeiou") for _ in range(3))
        town = dice.random() < 0.5
        name = stem + ("ville" if town else dice.choice(["mond", "lives", "tile", "velli"]))
        found.append(tagger.Sentence(("we", "saw", name, "."), ("O", "O", "B-town" if town else "O", "O")))
    return found


def test_names_known_by_their_spelling_alone_are_found_with_characters_and_not_without() -> None:
    dice = random.Random(0)
    train, dev = _towns(150, dice), _towns(60, dice)
    assert not {tokens[2] for tokens, _ in train} & {tokens[2] for tokens, _ in dev}
    vectors = Vectors(["we", "saw", "."], np.eye(3, dtype=np.float32))
    config = TaggerConfig(hidden=16, shape_width=2, batch_size=8, learning_rate=0.02, char_filters=12)
    reading = tagger.train(train, dev, vectors, epochs=6, config=config)
    assert reading.best.dev_f1 > 0.95
    assert reading.audit.frozen_moved == 0
    town, odd = reading.tagger.predict([["we", "saw", "Aixville"], ["", "\udc80ville", "\x00"]])
    assert town == ["O", "O", "B-town"]
    assert len(odd) == 3
    without = tagger.train(train, dev, vectors, epochs=6, config=dataclasses.replace(config, char_filters=0))
    assert without.best.dev_f1 < 0.75


def test_without_characters_the_network_has_no_tensor_for_them(toy: Any) -> None:
    without, reading = (
        tagger.train(toy.train, toy.dev, toy.vectors, epochs=1, config=dataclasses.replace(toy.config, char_filters=n))
        for n in (0, 6)
    )
    names, more = (set(run.tagger.model.state_dict()) for run in (without, reading))
    assert more - names == {"char_cnn.weight"}
    assert not names - more
    assert "char_cnn.weight" in str(reading.plan)


def test_a_network_that_reads_characters_refuses_a_batch_without_them() -> None:
    model = LSTMTagger(torch.randn(4, 3), ["O"], hidden=2, shape_width=2, dropout=0.0, char_filters=4)
    batch = pad([encode(["a", "b"], Vocabulary(["a", "b"], missing=0))])
    assert batch.spellings is None
    with pytest.raises(ValueError, match=re.escape("spellings: None, but the network reads characters.")):
        model(batch.rows, batch.shapes, batch.lengths)
    whole = pad([encode(["a", "b"], Vocabulary(["a", "b"], missing=0), characters=True)])
    assert model(whole.rows, whole.shapes, whole.lengths, whole.spellings).shape == (1, 2, 1)
