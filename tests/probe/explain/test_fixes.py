"""What to type for each verdict, and the page on it."""

import ast
from pathlib import Path

import pytest

from frostline.probe.explain import fixes
from frostline.probe.explain.fixes import fix_for, page_of
from frostline.probe.explain.verdicts import ALARMS, NOTES, VERDICTS

PROJECT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
PAGES = PROJECT / "docs" / "verdicts"


def test_every_verdict_has_a_page_and_every_page_a_verdict():
    pages = {path.relative_to(PROJECT).as_posix() for path in PAGES.glob("*.md") if path.name != "README.md"}
    assert pages == {page_of(verdict) for verdict in VERDICTS}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_a_page_says_whether_it_is_an_alarm_and_shows_it(verdict):
    text = (PROJECT / page_of(verdict)).read_text(encoding="utf-8")
    title, _, meaning = text.splitlines()[:3]
    assert title == f"# {verdict}"
    assert meaning.startswith("An alarm" if verdict in ALARMS else "No alarm")
    assert f"```text\n{verdict}" in text
    assert ("**What to type.**" in text) is (verdict in ALARMS)
    assert "**In other words.**" in text
    assert len(text.splitlines()) <= 60


def test_the_index_names_every_verdict_and_note():
    text = (PAGES / "README.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if line.startswith("| ")]
    assert {f"[{verdict}]({Path(page_of(verdict)).name})" for verdict in VERDICTS} <= set(rows)
    assert set(NOTES) <= set(rows)


@pytest.mark.parametrize("verdict", VERDICTS)
def test_there_is_something_to_type_for_every_alarm_and_only_then(verdict):
    for call in (None, "detach", "an unknown call"):
        assert bool(fix_for(verdict, call)) is (verdict in ALARMS)


def test_what_to_type_is_code_that_python_can_read():
    """The parts in backquotes parse, once the dots that stand for the reader's own are filled in."""
    texts = [*fixes.FIXES.values(), *fixes._CUT_BY.values(), *fixes._ZERO_BY.values(), *fixes._NOT_FINITE_BY.values()]
    pieces = [piece for text in texts for piece in text.replace("{call}", "item").split("`")[1::2]]
    assert len(pieces) > 30
    for piece in pieces:
        ast.parse(piece.removesuffix("=") if piece.endswith("=") else f"x{piece}" if piece[0] == "." else piece)
