"""`frostline explain train.py`, or `module:make`: what trains in a model, and an exit code for a build."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from frostline.errors import ProbeError

if TYPE_CHECKING:
    from frostline.probe import Explanation
    from frostline.probe.script.watch import ScriptWatch

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
    parser.add_argument("--step", type=int, default=1, metavar="N", help="explain the N-th step (default: 1)")
    parser.add_argument(
        "--light", action="store_true", help="keep no copy of what learns: whether it moves is then not known"
    )
    parser.add_argument("--stop", action="store_true", help="end the script when its step has been explained")
    parser.add_argument(
        "--fail",
        action="store_true",
        help="exit with 1 on an alarm, or if nothing is explained; else as the script does",
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
    from frostline.cli.explain.function import run_make

    return run_make(args.parser.parse_args([*args.arguments, "--", args.target], args) if args.arguments else args)


def _run_script(args: argparse.Namespace, target: str, arguments: list[str], as_module: bool) -> int:
    """Run a script, print what its step did to stderr; return its exit code, or with `--fail` 1 unless all is well."""
    from frostline.cli.explain.report import report
    from frostline.cli.explain.run_script import Stop, run_script, when_imported

    if args.step < 1:
        raise ProbeError(f"--step: expected a number from 1, got {args.step}.")
    for name in ("path_to", "run_folder", "expect"):
        if getattr(args, name) is not None:
            raise ProbeError(f"--{name.replace('_', '-')}: only for MODULE:MAKE. Leave it out.")
    if args.json == "-":
        raise ProbeError("--json: expected a file, as the script's stdout is its own. Pass --json FILE.")
    json_file = None if args.json is None else Path(args.json).absolute()  # the script may go to another folder
    if json_file is not None and not json_file.parent.is_dir():
        raise ProbeError(f"--json: {args.json}: no such folder. Make it first.")
    process = os.getpid()
    watches: list[ScriptWatch] = []
    ended = failed = reported = False

    def finished(found: dict[str, Explanation], lines: list[str]) -> None:
        nonlocal failed, reported
        reported = True
        first = watches[0].is_first if watches else None
        is_first = os.environ.get("RANK", "0") == "0" if first is None else first
        failed = any(explanation.alarms for explanation in found.values()) or (is_first and not found)
        if is_first:
            report(found, lines, json_file, target)
        if args.stop and not ended:
            raise Stop

    def torch_is_there() -> None:
        from frostline.probe.script.watch import ScriptWatch

        watches.append(ScriptWatch(args.step, args.light, finished))

    def end(error: BaseException | None) -> None:
        nonlocal ended
        ended = True
        if os.getpid() == process:  # else the script has forked, and this is the child
            for watch in watches:
                watch.end(error)
            if not reported:
                finished({}, [])

    when_imported("torch", torch_is_there)
    try:
        code = run_script(target, arguments, as_module, end)
    finally:
        for watch in watches:
            watch.abandon()  # of a script that could not be run; any other is over
    return 1 if args.fail and failed and code == 0 else code
