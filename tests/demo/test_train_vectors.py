"""Vectors depend on the seed alone and have the scale that the tagger needs."""

from __future__ import annotations

import sys

import pytest

import frostline as fl
from frostline.demo.train_vectors import train_vectors

pytest.importorskip("gensim", reason="vectors are trained by gensim, of the extra demo")


def test_the_same_seed_gives_the_same_vectors() -> None:
    text = [["red", "green", "blue", "white", "black"]] * 20
    first, second, other = (train_vectors(text, 4, 2, seed) for seed in (0, 0, 1))
    assert (first.matrix == second.matrix).all()
    assert (first.matrix != other.matrix).any()
    assert first.matrix.std() == pytest.approx(0.35, abs=1e-3)


def test_without_gensim_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    with pytest.raises(fl.MissingExtraError, match=r"pip install 'frostline\[demo\]'"):
        train_vectors([["a"]], 4, 1)
