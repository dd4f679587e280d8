"""What is released is what the changelog says, and the workflows call what there is."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
METADATA = '[project]\nversion = "0.3.0"\n[project.urls]\nHomepage = "x"\n'
CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [0.3.0] - 2026-12-01\n\n- New.\n\n## [0.2.0] - 2026-11-22\n"
problems = runpy.run_path(str(PROJECT / ".ci" / "check_release.py"))["problems"]


def test_a_release_that_is_ready_is_let_through():
    assert problems("v0.3.0", METADATA, CHANGELOG) == []


@pytest.mark.parametrize(
    ("tag", "metadata", "changelog", "says"),
    [
        ("v0.3.1", METADATA, CHANGELOG.replace("0.3.0", "0.3.1"), "pyproject.toml: its version is not 0.3.1"),
        ("v0.3.0", METADATA.replace("[project.urls]", ""), CHANGELOG, "pyproject.toml: no [project.urls]"),
        ("v0.3.0", METADATA, CHANGELOG.replace(" - 2026-12-01", ""), "CHANGELOG.md: no section [0.3.0] with a date"),
        (
            "v0.3.0",
            METADATA,
            CHANGELOG.replace("[Unreleased]\n", "[Unreleased]\n\n- Late.\n"),
            "CHANGELOG.md: lines under",
        ),
    ],
)
def test_one_that_is_not_is_refused_in_a_line(tag, metadata, changelog, says):
    (line,) = problems(tag, metadata, changelog)
    assert line.startswith(says)


def test_this_version_lacks_nothing_but_an_address():
    (version,) = re.findall(r'^version = "(.*)"$', (PROJECT / "pyproject.toml").read_text(), re.M)
    changelog = (PROJECT / "CHANGELOG.md").read_text().split("\n## [")
    found = problems(
        f"v{version}", (PROJECT / "pyproject.toml").read_text(), "\n## [".join((changelog[0], *changelog[2:]))
    )
    assert found == ["pyproject.toml: no [project.urls]: say where the project lives"]


def test_the_floors_of_the_metadata_are_what_make_oldest_installs():
    floors = re.search(r"^dependencies = \[(.*)\]$", (PROJECT / "pyproject.toml").read_text(), re.M).group(1)
    pins = dict(re.findall(r"^(\w+)==(\S+)$", (PROJECT / "constraints-oldest.txt").read_text(), re.M))
    for name, floor in re.findall(r'"(\w+)>=([\d.]+)"', floors):
        assert re.fullmatch(rf"{re.escape(floor)}(\.\d+)*", pins[name])


@pytest.mark.parametrize("name", ["test", "release"])
def test_workflows_call_words_and_files_that_exist(name):
    text = (PROJECT / ".github" / "workflows" / f"{name}.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    commands = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    words = [word for command in commands for word in re.findall(r"\bmake (\w+)", command)]
    files = [file for command in commands for file in re.findall(r"(?:^| |source/)((?:\.ci|tests)/\S+)", command)]
    makefile = (PROJECT / "Makefile").read_text()
    assert all(re.search(rf"^{word}\b.*:", makefile, re.M) for word in words)
    assert files
    assert all((PROJECT / file).exists() for file in files)
