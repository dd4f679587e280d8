"""`frostline explain train.py`, or `module:make`: what trains in a model, and an exit code for a build."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline.errors import FrostlineError, ProbeError
from frostline.files import replacing

if TYPE_CHECKING:
    from frostline.probe import Explanation

HELP = "what trains in a model, what does not, and the line that says why; fails a build that is not as expected"

_EXAMPLES = """\
examples:
  frostline explain train.py --epochs 3
  frostline explain --stop --fail --json found.json -m mypackage.train --epochs 3
  torchrun --no-python frostline explain train.py
  frostline explain mypackage.train:make
  frostline explain train.py:make --path-to embed.weight --run-folder run && frostline report run
  frostline explain train.py:make --json > plan.json
  frostline explain train.py:make --expect plan.json

A script runs unchanged, as `python train.py --epochs 3` would; all behind it is its own. Its first training step is
watched, and the table printed to stderr when the next forward begins; then it goes on at full speed. The exit code is
the script's.

`make` takes nothing and returns model, loss_fn and optimizer (or model and loss_fn). Modules are looked for in the
current folder too. The expected file maps names or patterns to verdicts, {"embed.*": "frozen", "*": "learns"}: an exact
name beats a pattern, and of the patterns that match a name the last one counts. The output of --json is such a file.
Exit codes: 0 as it should be; 1 an alarm or, with --expect, a difference; 2 cannot run."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "target",
        metavar="SCRIPT|MODULE:MAKE",
        nargs="?",
        help="a training script, or a function: package.module:make or file.py:make",
    )
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="the script's own arguments")
    parser.add_argument(
        "-m", dest="module", nargs=argparse.REMAINDER, help="run a module as a script, as python -m does"
    )
    parser.add_argument("--step", type=int, default=1, metavar="N", help="watch until the N-th step (default: 1)")
    parser.add_argument("--stop", action="store_true", help="end the script when its step has been explained")
    parser.add_argument(
        "--fail", action="store_true", help="exit with 1 on an alarm, where the script itself ends with 0"
    )
    parser.add_argument(
        "--path-to", metavar="NAME", help="print the way from the loss to this parameter too, call by call"
    )
    parser.add_argument("--run-folder", metavar="DIR", help="write what was found there as well, for frostline report")
    parser.add_argument("--expect", metavar="FILE", type=Path, help="JSON: name or pattern -> expected verdict")
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="name -> verdict, reason, where, ...: of MODULE:MAKE printed, of a script written to FILE",
    )
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Explain a script, or a function that makes a model; return the exit code."""
    if args.module:
        return _run_script(args, args.module[0], args.module[1:], as_module=True)
    if args.target is None and args.json not in (None, "-"):  # `--json train.py:make`
        args.target, args.json = args.json, "-"
    if args.target is None:
        args.parser.error("expected a script, or MODULE:MAKE")
    if Path(args.target).is_file() or args.target.endswith(".py"):
        return _run_script(args, args.target, args.arguments, as_module=False)
    return _run_make(args.parser.parse_args([*args.arguments, "--", args.target], args) if args.arguments else args)


def _run_script(args: argparse.Namespace, target: str, arguments: list[str], as_module: bool) -> int:
    """Run a script, print what its step did to stderr; return its exit code, or with `--fail` 1 for an alarm."""
    from frostline.probe.script.run import Stop, run_script
    from frostline.probe.script.watch import ScriptWatch

    if args.step < 1:
        raise ProbeError(f"--step: expected a number from 1, got {args.step}.")
    for name in ("path_to", "run_folder", "expect"):
        if getattr(args, name) is not None:
            raise ProbeError(f"--{name.replace('_', '-')}: only for MODULE:MAKE. Leave it out.")
    if args.json == "-":
        raise ProbeError("--json: expected a file, as the script's stdout is its own. Pass --json FILE.")
    ended = False

    def finished(explanations: dict[str, Explanation]) -> None:
        _report(explanations, args.json, target)
        if args.stop and not ended:
            raise Stop

    watch = ScriptWatch(args.step, finished)

    def end(error: BaseException | None) -> None:
        nonlocal ended
        ended = True
        watch.end(error)

    try:
        code = run_script(target, arguments, as_module, end)
    finally:
        watch.remove()
    alarms = any(explanation.alarms for explanation in watch.explanations.values())
    return 1 if args.fail and alarms and code == 0 else code


def _report(explanations: dict[str, Explanation], path: str | None, target: str) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    if not explanations:
        print(f"frostline: {target}: no module with parameters that learn has run.", file=sys.stderr)
    for name, explanation in explanations.items():
        print(f"\n{name}\n{explanation}\n", file=sys.stderr)
    if path is not None:
        found = {name: explanation.to_dict() for name, explanation in explanations.items()}
        with replacing(Path(path)) as file:
            Path(file).write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")


def _run_make(args: argparse.Namespace) -> int:
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
        return 1 if explanation.alarms else 0
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
