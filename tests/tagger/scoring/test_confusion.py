"""The confusion picture is written whole, or not at all with one line that says why."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

import frostline as fl
from frostline.tagger import Errors, analyse, draw_confusion

matplotlib = pytest.importorskip("matplotlib")


def _errors() -> Errors:
    gold = [["B-a", "O", "B-b"]] * 12 + [["B-a", "O", "O"]]
    return analyse([["x", "y", "z"]] * 13, gold, [["B-b", "B-a", "O"]] * 13)


def test_the_picture_shows_every_type_and_every_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    path = tmp_path / "confusion.svg"
    path.write_text("old", encoding="utf-8")
    draw_confusion(_errors(), path)
    texts = [element.text for element in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]
    assert {"a", "b", "nothing", "gold", "predicted"} <= set(texts)
    assert sorted(text for text in texts if text and text.isdigit()) == [
        "12",
        "13",
        "13",
    ]  # b missed, a as b, a invented
    assert list(tmp_path.iterdir()) == [path]


def test_a_png_is_a_png(tmp_path: Path) -> None:
    draw_confusion(_errors(), tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_refused_in_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(fl.DataFileError, match=re.escape("c.gif: a picture that ends in '.gif'. Choose one of")):
        draw_confusion(_errors(), tmp_path / "c.gif")
    with pytest.raises(fl.DataFileError, match=re.escape("c.png: no entity in the text")):
        draw_confusion(analyse([["x"]], [["O"]], [["O"]]), tmp_path / "c.png")
    path = tmp_path / "nowhere" / "c.png"
    with pytest.raises(fl.DataFileError, match=re.escape(f"{path}: cannot be written: No such file")):
        draw_confusion(_errors(), path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(fl.DataFileError, match=re.escape(f"{tmp_path / 'folder.png'}: cannot be written: Is a dir")):
        draw_confusion(_errors(), tmp_path / "folder.png")
    assert [file.name for file in tmp_path.iterdir()] == ["folder.png"]


def test_a_type_is_named_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    tags = [["B-$\\frac$", "B-地名"]]
    draw_confusion(analyse([["x", "y"]], tags, tags), tmp_path / "c.svg")
    texts = [element.text for element in ElementTree.parse(tmp_path / "c.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert {"$\\frac$", "地名"} <= set(texts)
    draw_confusion(analyse([["x", "y"]], tags, tags), tmp_path / "c.png")
