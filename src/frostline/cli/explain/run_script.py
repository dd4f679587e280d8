"""Run a script, or a module, as `python script.py` or `python -m module` would.

Nothing that a script may want to set up first is imported here: torch and numpy come when the script imports them.
"""

from __future__ import annotations

import builtins
import importlib.util
import os
import runpy
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import frostline
from frostline.errors import ProbeError

_OWN = (str(Path(frostline.__file__).parent), "<frozen runpy>", "<frozen importlib", runpy.__file__)


class Stop(SystemExit):
    """Ends the script where its step has been explained."""


def run_script(
    target: str, arguments: Sequence[str], as_module: bool, ended: Callable[[BaseException | None], None]
) -> int:
    """Run a script in this process and return its exit code; its traceback is printed without frostline's frames.

    What Python sets for a script stays set, as its threads and its functions for `atexit` may need it: `sys.argv`,
    `sys.path[0]` and the module `__main__`.

    Args:
        target: A file, or with `as_module` the name of a module.
        arguments: Those of the script.
        as_module: Whether to run it as `python -m` does.
        ended: Called with the script's error, or None, when it and its threads have ended.

    Raises:
        ProbeError: There is no such file or module.
    """
    if not as_module and not Path(target).is_file():
        raise ProbeError(f"{target}: no such file.")
    if not getattr(sys.flags, "safe_path", False):  # else Python puts nothing in front
        sys.path[:1] = [str(Path.cwd()) if as_module else str(Path(target).resolve().parent)]
    if as_module and not _is_module(target):
        raise ProbeError(f"-m {target}: no such module, here or installed.")
    sys.argv = ["-m" if as_module else target, *arguments]
    others = set(threading.enumerate())
    main = sys.modules["__main__"] = ModuleType("__main__")
    vars(main).update(__builtins__=builtins, __annotations__={})
    try:
        if as_module:
            run: Any = runpy
            run._run_module_as_main(target)  # what `python -m` calls
        else:
            _run_file(target, main)
    except Stop:
        error, code = None, 0
    except SystemExit as stop:
        error, code = None, _code(stop)
    except BaseException as raised:
        error, code = raised, 130 if isinstance(raised, KeyboardInterrupt) else 1
        _drop_own_frames(raised)
        sys.excepthook(type(raised), raised, raised.__traceback__)
    else:
        error, code = None, 0
    for thread in threading.enumerate():  # Python waits for them before it ends, and they may train
        if not thread.daemon and thread not in others:
            thread.join()
    ended(error if isinstance(error, Exception | None) else None)
    return code


def _run_file(target: str, main: ModuleType) -> None:
    path = target if Path(target).is_absolute() else f"{Path.cwd()}{os.sep}{target}"
    loader = SourceFileLoader("__main__", path)
    vars(main).update(__file__=path, __loader__=loader, __cached__=None)
    exec(loader.source_to_code(Path(path).read_bytes(), path), vars(main))


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:  # of its package; what that fails to import is told when it runs
        return not f"{name}.".startswith(f"{error.name}.")


def _code(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    print(stop.code, file=sys.stderr)
    return 1


def _drop_own_frames(error: BaseException) -> None:
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        each.__traceback__ = _without_own(each.__traceback__)
        each = each.__cause__ or each.__context__


def _without_own(chain: TracebackType | None) -> TracebackType | None:
    frames: list[TracebackType] = []
    while chain is not None:
        if not chain.tb_frame.f_code.co_filename.startswith(_OWN):
            frames.append(chain)
        chain = chain.tb_next
    rest = None
    for frame in reversed(frames):
        rest = TracebackType(rest, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return rest


def when_imported(name: str, call: Callable[[], None]) -> None:
    """Call a function as soon as a module has been imported: now, if it is already."""
    if name in sys.modules:
        call()
    else:
        sys.meta_path.insert(0, _Once(name, call))


class _Once(MetaPathFinder):
    """Finds nothing by itself: it lets the others find the module, and has its loader call a function at the end."""

    def __init__(self, name: str, call: Callable[[], None]) -> None:
        self._name, self._call = name, call
        self._asking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name or self._asking:
            return None
        self._asking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:  # it may only be asked for, and never be loaded
            loader: Any = spec.loader
            execute: Callable[[ModuleType], None] = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                del loader.exec_module
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    self._call()

            loader.exec_module = exec_module
        return spec
