"""The verdicts that a build expects of a model, read from a file, and where an explanation differs from them.

The file maps names or patterns to verdicts, {"embed.*": "frozen", "*": "learns"}: an exact name beats a pattern, and of
the patterns that match a name the last one counts. What `Explanation.to_dict()` returns is such a map too; it also says
how many rows or entries of a partial tensor learn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from frostline.errors import DataFileError
from frostline.probe.explain.verdicts import FROZEN_BY_PLAN, VERDICTS


@dataclass(frozen=True)
class Expected:
    """What is expected of the parameters that one name or pattern matches.

    Attributes:
        verdict: The verdict.
        learning: How many rows or entries of a partial tensor learn; None if the file does not say.
    """

    verdict: str
    learning: int | None


def read_expected(path: Path) -> dict[str, Expected]:
    """Return what the file `path` expects: name or pattern -> verdict.

    Raises:
        DataFileError: The file is not UTF-8 JSON, not a map, or has an unknown verdict.
        OSError: It cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text)
    except UnicodeDecodeError:
        raise DataFileError(f"{path}:1: expected JSON: not UTF-8.") from None
    except json.JSONDecodeError as error:
        raise DataFileError(f"{path}:{error.lineno}: expected JSON: {error.msg}.") from None
    if not isinstance(values, dict):
        raise DataFileError(f'{path}:1: it must map names to verdicts: {{"*": "learns"}}.')
    expected = {}
    for name, value in values.items():
        verdict = value.get("verdict") if isinstance(value, dict) else value
        if verdict not in VERDICTS:
            lines = enumerate(text.splitlines(), start=1)
            line = next((index for index, content in lines if json.dumps(name) in content), 1)
            raise DataFileError(
                f"{path}:{line}: {name}: expected a verdict ({', '.join(VERDICTS)}), got {json.dumps(verdict)}."
            )
        expected[name] = Expected(verdict, _learning(value) if isinstance(value, dict) else None)
    return expected


def differences(found: Mapping[str, Mapping[str, Any]], expected: Mapping[str, Expected]) -> list[str]:
    """Return a line for each parameter that is not as expected, and for each name or pattern that matches none.

    Args:
        found: What `Explanation.to_dict()` returns.
        expected: What `read_expected` returns.
    """
    lines: list[str] = []
    used: set[str] = set()
    for name, finding in found.items():
        patterns = [pattern for pattern in expected if fnmatchcase(name, pattern)]
        used.update([name] if name in expected else [], patterns)
        where = f" ({finding['where']})" if finding["where"] else ""
        if not patterns and name not in expected:
            lines.append(f"{name}: {finding['verdict']}{where}, but nothing is expected of it")
            continue
        wanted = expected[name] if name in expected else expected[patterns[-1]]
        if wanted.verdict != finding["verdict"]:
            lines.append(f"{name}: {finding['verdict']}{where}, expected: {wanted.verdict}")
        elif None not in (wanted.learning, learning := _learning(finding)) and wanted.learning != learning:
            lines.append(f"{name}: {learning:,} learn, expected: {wanted.learning:,}")
    for name, wanted in expected.items():
        if name not in used:
            lines.append(f"{name}: expected: {wanted.verdict}, but no parameter has this name")
    return lines


def _learning(finding: Mapping[str, Any]) -> int | None:
    """Return how many rows or entries of a partial tensor are to learn; None for a whole tensor."""
    groups = finding.get("groups")
    return sum(count for verdict, count in groups.items() if verdict != FROZEN_BY_PLAN) if groups else None
