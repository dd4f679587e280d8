"""`frostline explain module:make`: what trains in a model, and an exit code for a build."""

from __future__ import annotations

import argparse
import contextlib
import json
import secrets
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline.errors import DataFileError, FrostlineError, ProbeError

if TYPE_CHECKING:
    from frostline.probe import Explanation

HELP = "what trains in a model, what does not, and the line that says why; fails a build when it is not what was meant"

_EXAMPLES = """\
examples:
  frostline explain mypackage.train:make
  frostline explain train.py:make --json > plan.json
  frostline explain train.py:make --expect plan.json

`make` takes nothing and returns model, loss_fn and optimizer (or model and loss_fn). Modules are looked for in the
current folder too. The expected file maps names or patterns to verdicts, {"embed.*": "frozen", "*": "learns"}: an exact
name beats a pattern, among patterns the last one that fits counts. What --json prints will do.
Exit codes: 0 as it should be; 1 an alarm or, with --expect, a difference; 2 cannot run."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "make", metavar="MODULE:MAKE", help="where the function is: package.module:make or file.py:make"
    )
    parser.add_argument("--expect", metavar="FILE", type=Path, help="JSON: name or pattern -> expected verdict")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object: name -> verdict, reason, where, ..."
    )
    parser.add_argument("--html", metavar="FILE", type=Path, help="write the table as a page, too")


def run(args: argparse.Namespace) -> int:
    """Explain, print, compare; return 0, 1 for an alarm or a difference, or 2 if the user's own code raised."""
    expected = None if args.expect is None else _read_expected(args.expect)
    path = [*sys.path]
    sys.path.insert(0, str(Path.cwd()))
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what the user's code prints is not in the way of --json
            explanation = _explain(_find(args.make), args.make)
    except FrostlineError:
        raise
    except SystemExit as stop:
        raise ProbeError(f"{args.make}: it called sys.exit({stop.code!r}), so there is nothing to explain.") from None
    except Exception:
        traceback.print_exc()  # the user's own code: its traceback is what helps
        return 2
    finally:
        sys.path[:] = path
    if args.html is not None:
        _write(args.html, explanation.to_html())
    found = explanation.to_dict()
    print(json.dumps(found, indent=1, ensure_ascii=False) if args.json else explanation)
    if expected is None:
        return 1 if explanation.alarms else 0
    differences = list(_differences(found, expected))
    for line in differences:
        print(line, file=sys.stderr)
    return 1 if differences else 0


def _find(text: str) -> Callable[[], Any]:
    """The function that `package.module:make` or `file.py:make` names."""
    from importlib import import_module
    from importlib.util import find_spec, module_from_spec, spec_from_file_location

    place, _, name = text.rpartition(":")
    if not place or not name.isidentifier():
        raise ProbeError(f"MODULE:MAKE: {text!r} names no function. Type package.module:make or file.py:make.")
    try:
        if place.endswith(".py"):
            sys.path.insert(0, str(Path(place).absolute().parent))  # as for a script
            spec = spec_from_file_location("frostline_explained", place)  # no other module's name
            if not Path(place).is_file() or spec is None or spec.loader is None:
                raise ProbeError(f"{place}: no such file.")
            module = module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            parent = place.rpartition(".")[0]
            if (parent and find_spec(parent) is None) or find_spec(place) is None:
                raise ProbeError(f"{place}: no such module, here or installed.")
            module = import_module(place)
    except ModuleNotFoundError as error:
        raise ProbeError(f"{place}: {error}.") from None
    make = getattr(module, name, None)
    if not callable(make):
        raise ProbeError(f"{place}: has no function {name!r}.")
    return make  # type: ignore[no-any-return]


def _explain(make: Callable[[], Any], text: str) -> Explanation:
    from torch import nn

    from frostline.probe import explain
    from frostline.probe.inputs import optimizers_in

    made = make()
    parts = made if isinstance(made, tuple) else ()
    if len(parts) not in (2, 3) or not isinstance(parts[0], nn.Module) or not callable(parts[1]):
        raise ProbeError(f"{text}: it must return model, loss_fn and optimizer; it returned {_shape(made)}.")
    try:
        optimizers_in(parts[2] if len(parts) == 3 and parts[2] is not None else [])
    except TypeError as error:
        raise ProbeError(f"{text}: {error}") from None
    return explain(*parts)


def _shape(made: object) -> str:
    if isinstance(made, tuple):
        return f"({', '.join(type(one).__name__ for one in made)})"
    return type(made).__name__


def _read_expected(path: Path) -> dict[str, tuple[str, int | None]]:
    """Name or pattern -> verdict, and for a partial tensor how many of its rows or entries learn, if that is said."""
    from frostline.probe.explain.verdicts import VERDICTS

    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text)
    except UnicodeDecodeError:
        raise DataFileError(f"{path}:1: no JSON: not UTF-8.") from None
    except json.JSONDecodeError as error:
        raise DataFileError(f"{path}:{error.lineno}: no JSON: {error.msg}.") from None
    if not isinstance(values, dict):
        raise DataFileError(f'{path}:1: it must map names to verdicts: {{"*": "learns"}}.')
    expected = {}
    for name, value in values.items():
        verdict = value.get("verdict") if isinstance(value, dict) else value
        if verdict not in VERDICTS:
            line = next((n for n, one in enumerate(text.splitlines(), 1) if json.dumps(name) in one), 1)
            raise DataFileError(f"{path}:{line}: {name}: {verdict!r} is no verdict. They are: {', '.join(VERDICTS)}.")
        expected[name] = verdict, _learning(value) if isinstance(value, dict) else None
    return expected


def _learning(finding: dict[str, Any]) -> int | None:
    """How many rows or entries of a partial tensor are meant to learn."""
    groups = finding.get("groups")
    return sum(count for word, count in groups.items() if word != "frozen by plan") if groups else None


def _differences(found: dict[str, dict[str, Any]], expected: dict[str, tuple[str, int | None]]) -> list[str]:
    """One line for each parameter that is not as expected, and for each name or pattern that fits none."""
    from fnmatch import fnmatchcase

    lines: list[str] = []
    used: set[str] = set()
    for name, finding in found.items():
        fitting = [pattern for pattern in expected if fnmatchcase(name, pattern)]
        used.update([name] if name in expected else [], fitting)
        where = f" ({finding['where']})" if finding["where"] else ""
        if not fitting and name not in expected:
            lines.append(f"{name}: {finding['verdict']}{where}, but nothing is expected of it")
            continue
        verdict, learning = expected[name] if name in expected else expected[fitting[-1]]
        if verdict != finding["verdict"]:
            lines.append(f"{name}: {finding['verdict']}{where}, expected: {verdict}")
        elif learning not in (None, _learning(finding)):
            lines.append(f"{name}: {_learning(finding):,} learn, expected: {learning:,}")
    for name, (verdict, _) in expected.items():
        if name not in used:
            lines.append(f"{name}: expected: {verdict}, but no parameter has this name")
    return lines


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ProbeError(f"{path}: cannot be written: {error.strerror}. Name another file.") from None
    finally:
        temporary.unlink(missing_ok=True)
