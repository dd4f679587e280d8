"""The audit and the map, on tables small enough to check in the head."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from frostline import tagger
from frostline.demo.corpus import Sentence
from frostline.demo.moved_words import MovedWords
from frostline.vectors import Vectors

CODE = Sentence(("call", "foo", "now"), ("O", "B-code", "O"))
PROSE = Sentence(("a", "bar", "is", "here"), ("O", "O", "O", "O"))


@pytest.fixture(scope="module")
def run() -> tagger.TrainingRun:
    vectors = Vectors(["call", "now", "a", "is", "here", "unseen"], np.eye(6, 4) + 0.1)
    sentences = [CODE, PROSE] * 8
    return tagger.train(sentences, sentences, vectors, epochs=8, config=tagger.TaggerConfig(hidden=8, unk_dropout=0.0))


@pytest.fixture(scope="module")
def moved(run: tagger.TrainingRun) -> MovedWords:
    return MovedWords.from_run(run, [CODE, PROSE])


def test_the_learned_words_are_those_that_the_vectors_miss(moved: MovedWords) -> None:
    assert {moved.words[row - 2] for row in moved.learned} == {"foo", "bar"}
    assert {moved.words[row - 2]: bool(is_code) for row, is_code in zip(moved.learned, moved.is_code, strict=True)} == {
        "foo": True,
        "bar": False,
    }


def test_a_word_that_training_never_saw_is_not_among_the_seen(moved: MovedWords) -> None:
    assert {moved.words[row - 2] for row in moved.seen} == {"foo", "bar", "call", "now", "a", "is", "here"}


def test_frozen_words_stay_where_they_are_on_the_map_and_learned_words_move(moved: MovedWords) -> None:
    known = np.setdiff1d(np.arange(len(moved.before)), [0, 1, *moved.learned])
    assert np.array_equal(moved.map_before[known], moved.map_after[known])
    assert (moved.map_before[moved.learned] != moved.map_after[moved.learned]).all()
    assert (moved.distances > 0).all()


def test_code_words_move_to_the_right(moved: MovedWords) -> None:
    right = moved.map_after[moved.learned, 0] - moved.map_before[moved.learned, 0]
    assert right[moved.is_code].mean() > right[~moved.is_code].mean()


def test_sides_are_the_shares_of_code_that_moved_right_and_of_prose_that_moved_left() -> None:
    before = np.zeros((5, 2), dtype=np.float32)
    after = np.array([[1, 0], [2, 0], [-1, 0], [-1, 0], [3, 0]], dtype=np.float32)
    is_code = np.array([True, True, True, False, False])
    moved = MovedWords(list("abcde"), before, after, before, after, np.arange(5), is_code, np.arange(5))
    assert moved.sides() == pytest.approx((2 / 3, 1 / 2))


def test_the_run_changed_no_frozen_bit(run: tagger.TrainingRun) -> None:
    learned = run.tagger.vocabulary.learned
    frozen = torch.tensor([row not in learned for row in range(len(run.initial_table.to_tensor()))])
    before, after = run.initial_table.to_tensor(), run.tagger.model.embed.weight.detach()
    assert torch.equal(after[frozen], before[frozen])
    assert not torch.equal(after[~frozen], before[~frozen])
