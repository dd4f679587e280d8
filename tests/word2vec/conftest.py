"""Shared by tests of word2vec."""

import shutil

import pytest


@pytest.fixture(scope="session")
def cpp_compiler():
    """Skip the test if there is no C++ compiler."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler here")


@pytest.fixture(params=["c++", "torch"])
def backend(request, monkeypatch):
    """Run each test that uses it with the compiled code and without."""
    if request.param == "c++":
        request.getfixturevalue("cpp_compiler")
    monkeypatch.setenv("FROSTLINE_BACKEND", request.param)
    return request.param
