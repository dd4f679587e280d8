"""Shared by tests of the row optimizers."""

import shutil

import pytest

from frostline.optim import kernel


@pytest.fixture(scope="session")
def cpp_compiler():
    """Skip the test if there is no C++ compiler."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler here")


@pytest.fixture
def fresh_kernel(tmp_path, monkeypatch):
    """Make this process forget the kernel; return the folder of a new cache."""
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FROSTLINE_BACKEND", raising=False)
    kernel._load_once.cache_clear()
    yield tmp_path / "cache" / "kernel"
    kernel._load_once.cache_clear()
