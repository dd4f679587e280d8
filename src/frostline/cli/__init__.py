"""The command `frostline`: each file beside this one is a subcommand.

A command file holds `HELP` (one line), `configure(parser)`, which adds its arguments, and `run(args)`, which returns
the exit code. It imports torch only inside `run`, so that `--help` is fast. Exit codes: 0 done, 1 a check failed, 2
cannot run, 130 interrupted, 141 the reader of a pipe has closed it.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import pkgutil
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import frostline
from frostline.errors import FrostlineError

_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}  # errors of writing to an open file, such as stdout


class Version(argparse.Action):
    """The option --version: the versions that matter in a report of a bug, in one line, without importing anything."""

    def __call__(self, parser: argparse.ArgumentParser, *args: object) -> NoReturn:
        """Print the line and exit with 0."""
        from importlib.metadata import PackageNotFoundError, version

        found = [f"Python {sys.version.split()[0]}"]
        for package in ("torch", "numpy", "safetensors"):
            try:
                found.append(f"{package} {version(package)}")
            except PackageNotFoundError:
                found.append(f"no {package}")
        print(f"frostline {frostline.__version__} ({', '.join(found)})")
        parser.exit()


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and that accepts no abbreviated options."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, allow_abbrev=False, **kwargs)  # type: ignore[arg-type, misc]

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        self.exit(2, f"{self.prog}: {message} (try: {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 (done), 1 (the check failed) or 2 (cannot run).

    Args:
        argv: The arguments after the program's name; None takes those of this process.

    Example:
        >>> main(["tagger", "evaluate", "no/such/folder", "dev.conll"])
        2
    """
    _open_closed_streams()
    parser = make_parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what could come next
        _complete(parser)
    if sys.stdout is None:
        return _print_error("stdout is closed, cannot write output. Send it to a file, or to /dev/null.")
    try:
        args = parser.parse_args(argv)
        code: int = args.run(args)
        sys.stdout.flush()
    except SystemExit as stop:  # argparse: 0 after --help, 2 after a wrong argument
        return stop.code if isinstance(stop.code, int) else 2
    except FrostlineError as error:
        return _print_error(str(error))
    except BrokenPipeError:
        _silence_stdout()
        return 141
    except KeyboardInterrupt:
        print("frostline: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if error.filename is None and error.errno in _FULL:
            _silence_stdout()
            return _print_error(f"cannot write: {error.strerror}. Make room.")
        if error.filename is None:
            raise
        return _print_error(f"{error.filename}: {error.strerror}. Check the path.")
    return code


def make_parser() -> Parser:
    """Return the parser of `frostline` with all its commands."""
    parser = Parser(
        prog="frostline",
        description="Choose what learns in a PyTorch model; everything else keeps every bit.",
        epilog="examples:\n  frostline demo\n  frostline tagger train --help\n\n"
        'tab completion:\n  eval "$(register-python-argcomplete frostline)"   # --shell zsh | fish',
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print versions in one line and exit")
    commands = parser.add_subparsers(metavar="command", required=True)
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        command = import_module(f"{__name__}.{name}")
        child = commands.add_parser(name, help=command.HELP, description=command.HELP)
        child.set_defaults(run=command.run)
        command.configure(child)
    return parser


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell and exit, if argcomplete is installed: `eval "$(register-python-argcomplete frostline)"`."""
    try:
        import argcomplete
    except ImportError:
        return
    argcomplete.autocomplete(parser)


def _open_closed_streams() -> None:
    """Open /dev/null in the place of stdin, stdout and stderr where they are closed (`2>&-`).

    Otherwise the next file that is opened would take their place, and what a library prints would be written into it.
    Python says None for a closed stream. That stays so for stdin and stdout, which commands refuse; nothing is refused
    because nobody reads the errors, but `print(..., file=None)` would print them to stdout.
    """
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        try:
            os.fstat(number)
        except OSError:
            if stream is None and (opened := os.open(os.devnull, os.O_RDWR)) != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115, for as long as the process runs


def _silence_stdout() -> None:
    """Discard what is left in the buffer of stdout, so that the flush at exit raises no second error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_error(message: str) -> int:
    with contextlib.suppress(OSError):  # nobody reads stderr, or its disk is full: the exit code still tells
        print("frostline:", " ".join(message.splitlines()), file=sys.stderr)
    return 2
