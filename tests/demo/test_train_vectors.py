"""Vectors depend on the seed alone and have the scale that the tagger needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from frostline.demo.train_vectors import train_vectors


def test_the_same_seed_gives_the_same_vectors() -> None:
    text = [["red", "green", "blue", "white", "black"]] * 400
    first, second, other = (train_vectors(text, 4, 2, seed) for seed in (0, 0, 1))
    assert (first.matrix == second.matrix).all()
    assert (first.matrix != other.matrix).any()
    assert first.matrix.std() == pytest.approx(0.35, abs=1e-3)


def test_gensim_is_not_needed() -> None:
    code = "import sys; sys.modules['gensim'] = None; from frostline.demo.train_vectors import train_vectors; "
    code += "print(len(train_vectors([['ice', 'snow']] * 9999, 4, 1)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"
