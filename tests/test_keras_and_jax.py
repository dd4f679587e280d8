"""The page on Keras and JAX prints what it promises, where these are installed: they are not among the extras."""

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "keras-and-jax.md"
BLOCKS = re.compile(r"^```py\n(.*?)^```\n(?:```text\n(.*?)^```)?", re.M | re.S)
PARTS = {"Keras": ("## Keras", "## JAX", "tensorflow"), "JAX": ("## JAX", "## `learned", "jax")}


@pytest.mark.filterwarnings("default")  # theirs
@pytest.mark.parametrize("framework", PARTS)
def test_the_recipes_print_what_they_promise(framework):
    begin, end, package = PARTS[framework]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{framework} is not one of the extras")
    text = PAGE.read_text(encoding="utf-8")
    blocks = BLOCKS.findall(text[text.index(begin) : text.index(end)])
    assert len(blocks) >= 3
    names = {"__name__": "page"}
    for code, promised in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "keras-and-jax.md", "exec"), names)
        assert printed.getvalue() == promised
