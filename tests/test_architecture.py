"""The structure that docs/architecture.md shows: no circles, and a picture that is drawn from the imports."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture(scope="module")
def drawing():
    spec = importlib.util.spec_from_file_location("draw_architecture", DOCS / "draw_architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def package(tmp_path):
    """A small package, as a function that writes it: path -> text."""

    def write(files):
        for path, text in files.items():
            file = tmp_path / "house" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path / "house"

    return write


def test_no_files_import_each_other_in_a_circle(drawing):
    assert drawing.circles(drawing.imports()) == []


def test_no_two_folders_import_each_other(drawing):
    assert drawing.circles(drawing.folders(drawing.imports())) == []


def test_the_picture_shows_the_imports_as_they_are(drawing):
    assert drawing.PICTURE.read_text(encoding="utf-8") == drawing.draw(), "run python docs/draw_architecture.py"


def test_the_page_names_every_room(drawing):
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    assert [room for room in drawing.rooms(drawing.imports()) if f"`{room}" not in page] == []


def test_the_core_imports_nothing_above_it(drawing):
    rooms = drawing.rooms(drawing.imports())
    ground = set(drawing.GROUND)
    assert rooms["partial"] <= ground
    assert rooms["optim"] <= ground
    assert rooms["probe"] <= ground | {"partial", "gates"}


@pytest.mark.parametrize(
    "of_a",
    [
        "from house.b import g",
        "def f():\n    from house.b import g",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.b import g",
        "from house import b",
        "from house.face import g",
    ],
    ids=["plainly", "inside a function", "for type checkers", "as a module", "through an __init__"],
)
def test_a_circle_of_files_is_found_however_they_import(drawing, package, of_a):
    files = {"__init__.py": "", "a.py": of_a, "b.py": "import torch\nfrom house.a import f\ng = 1"}
    graph = drawing.imports(package(files | {"face/__init__.py": "from house.b import g as g"}))
    assert drawing.circles(graph) == [["a", "b"]]


def test_two_folders_that_import_each_other_are_found_though_their_files_make_no_circle(drawing, package):
    inits = dict.fromkeys(["__init__.py", "a/__init__.py", "b/__init__.py"], "")
    files = {"a/x.py": "from house.b.y import g", "b/y.py": "g = 1", "b/z.py": "from house.a.w import h", "a/w.py": ""}
    graph = drawing.imports(package(inits | files))
    assert drawing.circles(graph) == []
    assert drawing.circles(drawing.folders(graph)) == [["a", "b"]]


def test_an_arrow_stands_for_an_import_and_a_longer_way_makes_a_short_one_needless(drawing, package):
    files = {
        "__init__.py": "",
        "errors.py": "",
        "a.py": "from house import b, c, errors",
        "b.py": "from house import c",
    }
    picture = drawing.draw(package(files | {"c.py": '"""The lowest of <all>."""'}))
    assert picture.count("marker-end") == 2  # a -> b -> c, not a -> c
    assert "The lowest of &lt;all&gt;." in picture
