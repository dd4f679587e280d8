"""Run a script, or a module, as `python script.py` or `python -m module` would."""

from __future__ import annotations

import runpy
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import frostline
from frostline.errors import ProbeError

_OWN = (str(Path(frostline.__file__).parent), "<frozen runpy>", runpy.__file__)


class Stop(SystemExit):
    """Ends the script where its step has been explained."""


def run_script(
    target: str, arguments: Sequence[str], as_module: bool, ended: Callable[[BaseException | None], None]
) -> int:
    """Run a script and return its exit code; its own traceback is printed, without frostline's frames.

    Args:
        target: A file, or with `as_module` the name of a module.
        arguments: Those of the script.
        as_module: Whether to run it as `python -m` does.
        ended: Called with the script's error, or None, when it ends.

    Raises:
        ProbeError: There is no such file or module.
    """
    from importlib.util import find_spec

    before = sys.argv, [*sys.path]
    sys.argv = [target, *arguments]
    sys.path.insert(0, str(Path.cwd()) if as_module else str(Path(target).resolve().parent))
    try:
        if not as_module and not Path(target).is_file():
            raise ProbeError(f"{target}: no such file.")
        if as_module and not _is_module(target, find_spec):
            raise ProbeError(f"-m {target}: no such module, here or installed.")
        try:
            if as_module:
                runpy.run_module(target, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(target, run_name="__main__")
        except Stop:
            ended(None)
            return 0
        except SystemExit as stop:
            ended(None)
            return _code(stop)
        except BaseException as error:
            ended(error if isinstance(error, Exception) else None)
            _print_without_own_frames(error)
            return 130 if isinstance(error, KeyboardInterrupt) else 1
        ended(None)
        return 0
    finally:
        sys.argv, sys.path[:] = before


def _is_module(name: str, find_spec: Callable[[str], object]) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _code(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    print(stop.code, file=sys.stderr)
    return 1


def _print_without_own_frames(error: BaseException) -> None:
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        each.__traceback__ = _without_own(each.__traceback__)
        each = each.__cause__ or each.__context__
    traceback.print_exception(error)


def _without_own(chain: TracebackType | None) -> TracebackType | None:
    if chain is None:
        return None
    rest = _without_own(chain.tb_next)
    if chain.tb_frame.f_code.co_filename.startswith(_OWN):
        return rest
    return TracebackType(rest, chain.tb_frame, chain.tb_lasti, chain.tb_lineno)
