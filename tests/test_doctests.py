"""The examples in docstrings print what they say."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import frostline

MODULES = [
    module.name for module in pkgutil.walk_packages(frostline.__path__, "frostline.") if "__main__" not in module.name
]


@pytest.mark.parametrize("name", MODULES)
def test_a_modules_examples_print_what_they_say(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_core_has_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in ("partial.train_only", "partial.selections", "partial.learned_file", "gates", "vectors.embedding"):
        assert any(test.examples for test in finder.find(importlib.import_module(f"frostline.{name}")))
