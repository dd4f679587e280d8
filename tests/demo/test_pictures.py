"""The pictures show every run and word in its colour, and no other file is written."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

import frostline as fl
from frostline.demo import pictures

pytest.importorskip("matplotlib", reason="pictures need matplotlib, of the extra demo")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(importlib.import_module("matplotlib.image").imread(path))[..., :3]


def colours(path: Path, colour: str) -> int:
    expected = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return int((np.abs(pixels(path) - expected).max(axis=-1) < 0.2).sum())


@pytest.fixture
def dots() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)


def test_curves_show_every_run_in_its_own_colour(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    runs = {
        "first": pictures.Curve([3, 2, 1], [0.1, 0.2, 0.3]),
        "second": pictures.Curve([2, 2, 2], [0.2, 0.2, 0.2]),
        "third": pictures.Curve([1, 2, 3], [0.3, 0.2, 0.1]),
    }
    pictures.draw_curves(path, runs, "a title")
    assert pixels(path).shape == (480, 1200, 3)
    assert min(colours(path, colour) for colour in (pictures.BLUE, pictures.GREEN, pictures.ORANGE)) > 200


def test_the_map_shows_code_and_prose_in_their_own_colours(tmp_path: Path, dots: np.ndarray) -> None:
    alone, both = tmp_path / "code.png", tmp_path / "both.png"
    code = pictures.Arrow("foo_$x$", (0.0, 0.0), (2.0, 0.5), is_code=True)
    prose = pictures.Arrow("bar", (0.0, 0.0), (-2.0, -0.5), is_code=False)
    pictures.draw_map(alone, dots, {"known": 3}, [code], "a title")
    pictures.draw_map(both, dots, {"known": 3}, [code, prose], "a title")
    assert pixels(both).shape == (700, 1200, 3)
    assert colours(both, pictures.ORANGE) > colours(alone, pictures.ORANGE) + 200
    assert colours(alone, pictures.BLUE) > 200


def test_a_word_without_space_for_its_label_is_left_out(tmp_path: Path, dots: np.ndarray) -> None:
    few, many, other = tmp_path / "few.png", tmp_path / "many.png", tmp_path / "other.png"
    foo = pictures.Arrow("foo", (0.0, 0.0), (2.0, 0.5), is_code=True)
    far = pictures.Arrow("far", (0.0, 0.0), (2.0, -0.5), is_code=True)
    pictures.draw_map(few, dots, {}, [foo] * 10 + [far], "a title")
    pictures.draw_map(many, dots, {}, [foo] * 30 + [far], "a title")
    pictures.draw_map(other, dots, {}, [foo] * 10, "a title")
    assert np.array_equal(pixels(few), pixels(many))
    assert not np.array_equal(pixels(few), pixels(other))


def test_nothing_but_the_picture_is_left_in_the_folder(tmp_path: Path) -> None:
    pictures.draw_curves(tmp_path / "curves.png", {"first": pictures.Curve([1], [0.5])}, "a title")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_without_matplotlib_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(fl.MissingExtraError, match=r"pip install 'frostline\[demo\]'"):
        pictures.draw_curves(tmp_path / "curves.png", {}, "a title")
    assert not list(tmp_path.iterdir())
