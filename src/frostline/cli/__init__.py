"""The command `frostline`: each file beside this one is a subcommand.

A command file holds `HELP` (one line), `configure(parser)` (its arguments) and `run(args)` (its exit code), and imports
torch only inside `run`, so that `--help` is quick. Exit codes: 0 done, 1 a check failed, 2 cannot run, 130 interrupted,
141 the reader of a pipe went away.
"""

from __future__ import annotations

import argparse
import os
import pkgutil
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from frostline.errors import FrostlineError


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a wrong argument with one line, and never guesses at abbreviated options."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, allow_abbrev=False, **kwargs)  # type: ignore[arg-type, misc]

    def error(self, message: str) -> NoReturn:
        """Print one line and leave with 2."""
        self.exit(2, f"{self.prog}: {message} (try: {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 (done), 1 (the check failed) or 2 (cannot run).

    Args:
        argv: The arguments after the program's name; None takes those of this process.

    Example:
        >>> main(["tagger", "evaluate", "no/such/folder", "dev.conll"])
        2
    """
    parser = Parser(
        prog="frostline",
        description="Choose what learns in a PyTorch model; everything else keeps every bit.",
        epilog="examples:\n  frostline demo\n  frostline tagger train --help",
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        command = import_module(f"{__name__}.{name}")
        child = commands.add_parser(name, help=command.HELP, description=command.HELP)
        child.set_defaults(run=command.run)
        command.configure(child)
    try:
        args = parser.parse_args(argv)
        code: int = args.run(args)
        sys.stdout.flush()
    except SystemExit as stop:  # argparse: 0 after --help, 2 after a wrong argument
        return stop.code if isinstance(stop.code, int) else 2
    except FrostlineError as error:
        return _refuse(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit stays silent
        return 141
    except KeyboardInterrupt:
        print("frostline: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if error.filename is None:
            raise
        return _refuse(f"{error.filename}: {error.strerror}")
    return code


def _refuse(message: str) -> int:
    print("frostline:", " ".join(message.splitlines()), file=sys.stderr)
    return 2
