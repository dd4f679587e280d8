"""The notebooks run from top to bottom, offline, and print what is stored in them."""

import contextlib
import io
import json
import linecache
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from frostline.probe.trace.source_line import SourceLine

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.ipynb"))


def code_cells(notebook):
    """Yield (source, stored output) of each code cell."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert {output["output_type"] for output in cell["outputs"]} <= {"stream"}
            yield "".join(cell["source"]), "".join("".join(output["text"]) for output in cell["outputs"])


def run(source, number, names):
    """Run a cell as Jupyter does, and return what it prints."""
    cell = f"In[{number}]"  # what explain calls the cell there
    linecache.cache[cell] = (len(source), None, source.splitlines(keepends=True), cell)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(source, cell, "exec"), names)
    return out.getvalue()


def refuse(*_):
    raise OSError("a notebook that runs in the tests uses no network")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_prints_what_is_stored_in_it(notebook, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    names = {"__name__": "__main__"}
    for number, (source, stored) in enumerate(code_cells(notebook), start=1):
        assert run(source, number, names) == stored


def test_explain_names_the_cell_in_a_notebook(monkeypatch):
    names = {"/tmp/ipykernel_7/1234.py": ("Cell", "In[3]")}
    shell = SimpleNamespace(compile=SimpleNamespace(format_code_name=names.get))  # what IPython's own tracebacks ask
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert SourceLine("/tmp/ipykernel_7/1234.py", 2, "detach").where == "In[3]:2"
    assert SourceLine("/home/somebody/train.py", 2, "detach").where == "/home/somebody/train.py:2"
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))  # imported by a script
    assert SourceLine("/tmp/ipykernel_7/1234.py", 2, "detach").where == "/tmp/ipykernel_7/1234.py:2"


def test_there_are_two_notebooks_and_each_shows_something():
    assert [path.stem for path in NOTEBOOKS] == ["new_tokens", "why_does_it_not_train"]
    for notebook in NOTEBOOKS:
        assert sum(bool(stored) for _, stored in code_cells(notebook)) >= 4


def test_a_cell_that_prints_something_else_would_be_seen():
    assert run("print(torch.ones(1))", 1, {"torch": torch}) == "tensor([1.])\n"
