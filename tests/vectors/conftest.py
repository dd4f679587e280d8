"""Shared by tests of word vectors."""

import os
import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """A cache folder for each test alone."""
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vectors"


@pytest.fixture(params=["polars", "numpy"])
def parser(request, monkeypatch):
    """Run each test that uses it with polars and without."""
    if request.param == "numpy":
        monkeypatch.setitem(sys.modules, "polars", None)  # makes `import polars` raise ImportError
    else:
        pytest.importorskip("polars")
    return request.param


@pytest.fixture
def write(tmp_path):
    """Write bytes or text to a file in the test's folder."""

    def write(content, name="vectors.txt"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture(scope="session")
def glove(pytestconfig):
    root = os.environ.get("FROSTLINE_SHARED") or pytestconfig.rootpath.parent / "shared"
    path = Path(root) / "data" / "vectors" / "glove.6B.50d.txt.gz"
    if not path.exists():
        pytest.skip(f"real vectors are not at {path}; set FROSTLINE_SHARED to their folder")
    return path
