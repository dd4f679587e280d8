"""Refuse a release that is not ready: tag, version and changelog must agree, and the project have an address.

Run:    python .ci/check_release.py v0.2.0
"""

import re
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def problems(tag: str, metadata: str, changelog: str) -> list[str]:
    """Return what keeps the version of `tag` from being released, one line each."""
    found = []
    version = tag.removeprefix("v")
    if f'\nversion = "{version}"\n' not in metadata:
        found.append(f"pyproject.toml: its version is not {version}, which the tag {tag} names")
    if "\n[project.urls]\n" not in metadata:
        found.append("pyproject.toml: no [project.urls]: say where the project lives")
    sections = dict(re.findall(r"^## \[(.+?)\](.*?)(?=^## |\Z)", changelog, re.M | re.S))
    if not re.match(r" - \d{4}-\d\d-\d\d\n", sections.get(version, "")):
        found.append(f"CHANGELOG.md: no section [{version}] with a date")
    if sections.get("Unreleased", "").strip():
        found.append(f"CHANGELOG.md: lines under [Unreleased]: move them to [{version}]")
    return found


if __name__ == "__main__":
    (tag,) = sys.argv[1:]
    found = problems(tag, (PROJECT / "pyproject.toml").read_text(), (PROJECT / "CHANGELOG.md").read_text())
    sys.exit("\n".join(found) or 0)
