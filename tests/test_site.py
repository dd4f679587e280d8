"""The site's reference has every public name, once, and nothing else; the site loads nothing from other servers."""

import ast
import doctest
import importlib
import pkgutil
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

import frostline as fl
from frostline import integrations

DOCS = Path(__file__).resolve().parents[1] / "docs"
ENTRY = re.compile(r"^::: (\S+)\n    options:\n      heading: (\S+)\n", re.M)
NOT_FOR_USERS = {"cli", "demo", "partial"}  # all of `partial` that is public is offered as fl.NAME
LIBRARIES = Path(fl.__file__).parent / "integrations"  # each file needs another library: listed without an import


def documented():
    """Heading -> path of each entry of the reference."""
    entries = [entry for page in sorted((DOCS / "reference").glob("*.md")) for entry in ENTRY.findall(page.read_text())]
    assert len({heading for _, heading in entries}) == len(entries)
    return {heading: path for path, heading in entries}


def public():
    """Name -> object of all that is public, under the shortest name that users have."""
    names = {}
    for room in pkgutil.iter_modules(fl.__path__):
        if room.ispkg and room.name not in NOT_FOR_USERS | {LIBRARIES.name}:
            module = importlib.import_module(f"frostline.{room.name}")
            root = "fl" if room.name in fl.__all__ else "frostline"
            names |= {f"{root}.{room.name}.{name}": getattr(module, name) for name in module.__all__}
    mine = {f"fl.{name}": getattr(fl, name) for name in fl.__all__ if not isinstance(getattr(fl, name), ModuleType)}
    here = [id(value) for value in mine.values()]
    return mine | {name: value for name, value in names.items() if id(value) not in here}


def of_integrations():
    """Names of the public classes and functions of each integration."""
    for library in integrations._LIBRARIES:
        for node in ast.parse((LIBRARIES / f"{library}.py").read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                yield f"frostline.integrations.{library}.{node.name}"


def test_the_reference_has_every_public_name_and_no_other():
    assert set(documented()) == {*public(), *of_integrations()}, (
        "docs/reference/: add an entry `::: path` with its heading, or remove one"
    )


def test_an_entry_of_the_reference_shows_what_its_heading_names():
    names = public()
    for heading, path in documented().items():
        if heading in names:
            module, _, name = path.rpartition(".")
            assert getattr(importlib.import_module(module), name) is names[heading]


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_pages_use_no_syntax_of_one_generator(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert not re.search(r"^(!!!|\?\?\?|===) ", text, re.M)
    assert not re.search(r"https?://(fonts\.|cdn\.|unpkg|cdnjs|cdn)", text)


def load(name):
    """A module beside the pages."""
    spec = spec_from_file_location(name, DOCS / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["site_docstrings", "site_hooks"])
def test_the_examples_of_what_builds_the_site_print_what_they_say(name):
    found = doctest.testmod(load(name))
    assert (found.attempted > 0, found.failed) == (True, 0)


def test_the_site_has_the_help_of_every_command():
    hooks = load("site_hooks")
    page = hooks.on_page_markdown((DOCS / "reference" / "command-line.md").read_text(encoding="utf-8"))
    assert hooks.HELP not in page
    for command in ("tagger train", "vectors near", "explain"):
        assert f"## `frostline {command}`\n\n```text\nusage: frostline {command} " in page


def test_docstrings_are_read_as_they_are_meant():
    module = load("site_docstrings")
    written = "Do it.\n\nCost: a copy,\n    made once.\n\nExample:\n    >>> 1\n    1\n\nSource: a paper."
    read = "Do it.\n\n**Cost:** a copy,\nmade once.\n\nExamples:\n    >>> 1\n    1\n\n**Source:** a paper."
    assert module.rewritten(written) == read
