"""The README and every page of the documentation run from top to bottom and print what they say."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).resolve().parents[1]
DOCS = PROJECT / "docs"
PAGES = [PROJECT / "README.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def run(text, name):
    """Run the python blocks in one namespace; return (printed, promised) for each that a text block follows."""
    names, printed, results = {"__name__": "page"}, None, []
    for block in BLOCK.finditer(text):
        language, body = block.groups()
        if language == "python":
            line = text.count("\n", 0, block.start()) + 1
            code = compile("\n" * line + body, name, "exec")  # so that a traceback names the page's own line
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(code, names)
            printed = out.getvalue()
        elif language == "text" and printed is not None:
            results.append((printed, body))
            printed = None
    return results


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(PROJECT)) for page in PAGES])
def test_a_page_prints_what_it_promises(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # or DeepSpeed, which others import, prints which one it has found
    torch.manual_seed(0)
    for printed, promised in run(page.read_text(encoding="utf-8"), str(page)):
        assert printed == promised


def test_a_page_that_promises_something_else_would_be_seen():
    assert run("```python\nprint(1)\n```\n```text\n2\n```\n", "page") == [("1\n", "2\n")]


@pytest.mark.parametrize("name", ["known-and-missing-words", "gates", "freezing-rows-recipes"])
def test_a_page_about_one_task_is_short_and_promises_something(name):
    text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 90
    assert text.count("```text") >= 2
