"""A trained tagger tags sentences in any order and number, on one thread."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from frostline import tagger
from frostline.tagger import Tagger
from frostline.tagger.tagger import one_thread


@pytest.fixture(scope="module")
def trained(toy: Any) -> Tagger:
    return tagger.train(toy.train, toy.dev, toy.vectors, epochs=2, config=toy.config).tagger


def test_strings_in_place_of_token_lists_are_refused(trained: Tagger) -> None:
    with pytest.raises(TypeError, match=re.escape("Pass [sentence.split()]")):
        trained.predict(["Person3 sees"])


def test_sentences_may_come_one_by_one(toy: Any, trained: Tagger) -> None:
    tokens = [sentence.tokens for sentence in toy.dev]
    assert trained.predict(iter(tokens)) == trained.predict(tokens) != []


def test_prediction_keeps_the_order_of_sentences_of_all_lengths(toy: Any, trained: Tagger) -> None:
    sentences = [list(tokens) for tokens, _ in toy.train] + [[]]
    together = trained.predict(sentences)
    assert together == [tags for tokens in sentences for tags in trained.predict([tokens])]
    assert [len(tags) for tags in together] == [len(tokens) for tokens in sentences]


def test_threads_that_predict_at_once_leave_the_setting_of_later_threads_as_it_was() -> None:
    begun, ended = threading.Barrier(2, timeout=60), threading.Barrier(2, timeout=60)

    def first() -> None:
        with one_thread():
            begun.wait()
            ended.wait()

    def second() -> int:
        begun.wait()
        with one_thread():  # while the other is in it, and longer
            inside = torch.get_num_threads()
            ended.wait()
            entered_first.result()
        return inside

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with ThreadPoolExecutor(2) as pool, ThreadPoolExecutor(1) as later:
            entered_first = pool.submit(first)
            entered_second = pool.submit(second)
            assert entered_second.result() == 1
            assert later.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
