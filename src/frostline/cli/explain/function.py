"""Explain what a function returns: `frostline explain module:make`."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline.errors import FrostlineError, ProbeError

if TYPE_CHECKING:
    from frostline.probe import Explanation


def run_make(args: argparse.Namespace) -> int:
    """Explain, print, compare; return 0, 1 for an alarm or a difference, or 2 if the user's own code raised."""
    from frostline.probe.explain.expected import differences, read_expected

    expected = None if args.expect is None else read_expected(args.expect)
    search_path = [*sys.path]
    sys.path.insert(0, str(Path.cwd()))
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what the user's code prints must not get into --json
            explanation = _explain(load_function(args.target), args.target, args.path_to)
    except FrostlineError:
        raise
    except SystemExit as stop:
        raise ProbeError(f"{args.target}: it called sys.exit({stop.code!r}), so there is nothing to explain.") from None
    except Exception:
        traceback.print_exc()  # the user's own code: its traceback is what helps
        return 2
    finally:
        sys.path[:] = search_path
    found = explanation.to_dict()
    if args.run_folder is not None:
        from frostline.record import describe_run

        describe_run(args.run_folder, title=f"What learns in {args.target}", explanation=explanation)
    print(json.dumps(found, indent=1, ensure_ascii=False) if args.json else explanation)
    if expected is None:
        return 1 if explanation.alarms or explanation.raised else 0
    lines = differences(found, expected)
    for line in lines:
        print(line, file=sys.stderr)
    return 1 if lines else 0


def load_function(text: str) -> Callable[[], Any]:
    """Return the function that `package.module:make` or `file.py:make` names."""
    from importlib import import_module
    from importlib.util import find_spec, module_from_spec, spec_from_file_location

    source, _, name = text.rpartition(":")
    if not source or not name.isidentifier():
        raise ProbeError(f"MODULE:MAKE: expected package.module:make or file.py:make, got {text!r}.")
    try:
        if source.endswith(".py"):
            sys.path.insert(0, str(Path(source).absolute().parent))  # as for a script
            spec = spec_from_file_location("frostline_explained", source)  # a name that no other module has
            if not Path(source).is_file() or spec is None or spec.loader is None:
                raise ProbeError(f"{source}: no such file.")
            module = module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            parent = source.rpartition(".")[0]
            if (parent and find_spec(parent) is None) or find_spec(source) is None:
                raise ProbeError(f"{source}: no such module, here or installed.")
            module = import_module(source)
    except ModuleNotFoundError as error:
        raise ProbeError(f"{source}: {error}.") from None
    make = getattr(module, name, None)
    if not callable(make):
        raise ProbeError(f"{source}: has no function {name!r}.")
    return make  # type: ignore[no-any-return]


def _explain(make: Callable[[], Any], text: str, path_to: str | None) -> Explanation:
    from torch import nn

    from frostline.probe import explain
    from frostline.probe.inputs import check_optimizers

    made = make()
    parts = made if isinstance(made, tuple) else ()
    if len(parts) not in (2, 3) or not isinstance(parts[0], nn.Module) or not callable(parts[1]):
        types = (
            f"({', '.join(type(part).__name__ for part in made)})" if isinstance(made, tuple) else type(made).__name__
        )
        raise ProbeError(f"{text}: it must return model, loss_fn and optimizer; it returned {types}.")
    try:
        check_optimizers(parts[2] if len(parts) == 3 and parts[2] is not None else [])
    except TypeError as error:
        raise ProbeError(f"{text}: {error}") from None
    return explain(*parts, path_to=path_to)
