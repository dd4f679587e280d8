"""The numbers of the audit and of the map, on tables small enough to check in the head."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from frostline import tagger
from frostline.demo import travel
from frostline.demo.corpus import Sentence
from frostline.demo.regimes import end_of, verdict
from frostline.vectors import Vectors

CODE = Sentence(("call", "foo", "now"), ("O", "B-code", "O"))
PROSE = Sentence(("a", "bar", "is", "here"), ("O", "O", "O", "O"))


@pytest.fixture(scope="module")
def run() -> tagger.TrainingRun:
    vectors = Vectors(["call", "now", "a", "is", "here", "unseen"], np.eye(6, 4) + 0.1)
    sentences = [CODE, PROSE] * 8
    return tagger.train(sentences, sentences, vectors, epochs=8, options=tagger.Options(hidden=8, hide=0.0))


@pytest.fixture(scope="module")
def journey(run: tagger.TrainingRun) -> travel.Journey:
    return travel.journey(run, end_of(run).numpy(), [CODE, PROSE])


def test_the_learned_words_are_those_that_the_vectors_miss(journey: travel.Journey) -> None:
    assert {journey.words[row - 2] for row in journey.learned} == {"foo", "bar"}
    assert {journey.words[row - 2]: bool(code) for row, code in zip(journey.learned, journey.code, strict=True)} == {
        "foo": True,
        "bar": False,
    }


def test_a_word_that_training_never_saw_is_not_heard(journey: travel.Journey) -> None:
    assert {journey.words[row - 2] for row in journey.heard} == {"foo", "bar", "call", "now", "a", "is", "here"}


def test_frozen_words_stand_still_on_the_map_and_learned_words_move(journey: travel.Journey) -> None:
    known = np.setdiff1d(np.arange(len(journey.start)), [0, 1, *journey.learned])
    assert np.array_equal(journey.start_map[known], journey.end_map[known])
    assert (journey.start_map[journey.learned] != journey.end_map[journey.learned]).all()
    assert (journey.moved > 0).all()


def test_code_goes_right(journey: travel.Journey) -> None:
    right = journey.end_map[journey.learned, 0] - journey.start_map[journey.learned, 0]
    assert right[journey.code].mean() > right[~journey.code].mean()


def test_sides_are_shares_of_code_that_went_right_and_of_prose_that_went_left() -> None:
    before = np.zeros((5, 2), dtype=np.float32)
    after = np.array([[1, 0], [2, 0], [-1, 0], [-1, 0], [3, 0]], dtype=np.float32)
    code = np.array([True, True, True, False, False])
    moved = travel.Journey(list("abcde"), before, after, before, after, np.arange(5), code, np.arange(5))
    assert moved.sides() == pytest.approx((2 / 3, 1 / 2))


def test_every_row_has_the_same_say_in_the_plane() -> None:
    start = np.zeros((4, 3), dtype=np.float32)
    end = np.array([[0, 1, 0], [0, 1, 0], [0, 1, 0], [100, 0, 0]], dtype=np.float32)
    plane = travel.plane_of_movement(start, end)
    assert np.abs(plane[:, 0]).argmax() == 1
    assert plane.T @ plane == pytest.approx(np.eye(2), abs=1e-6)


def test_the_run_left_every_frozen_bit_alone(run: tagger.TrainingRun) -> None:
    learned = run.tagger.vocabulary.learned
    frozen = torch.tensor([row not in learned for row in range(len(run.start))])
    assert torch.equal(end_of(run)[frozen], run.start[frozen])
    assert not torch.equal(end_of(run)[~frozen], run.start[~frozen])


def test_the_verdict_names_whichever_regime_wins_and_whether_the_seeds_agree() -> None:
    assert (
        verdict({"a": [0.1, 0.2], "b": [0.3, 0.4]})
        == 'Highest mean: "b", 20.0 points before "a"; no seed says otherwise.'
    )
    assert "does not tell them apart" in verdict({"a": [0.1, 0.35], "b": [0.3, 0.4]})
