"""The line of the user's code that is running now.

A line inside torch does not help the reader; the line of their own code that led there does. So the stack is walked
outwards past torch, frostline, the standard library and installed packages. If all of it is installed code, the
innermost frame outside torch is used instead.
"""

from __future__ import annotations

import functools
import linecache
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import TypeVar

import torch

from frostline.gates import stop_gradient

T = TypeVar("T")

_TORCH = str(Path(torch.__file__).parent) + os.sep
_FROSTLINE = sys.modules["frostline"].__path__[0] + os.sep
_STANDARD = (sysconfig.get_paths()["stdlib"] + os.sep, sysconfig.get_paths()["platstdlib"] + os.sep)
_GENERATED = ("<frozen ", "<eval_with_key>")  # importlib's frames, and code that torch.fx has generated


@dataclass(frozen=True)
class SourceLine:
    """A line of code, and the call there.

    Attributes:
        path: Path of the file.
        line: Line number, from 1.
        call: What was called there, such as `detach`.
        installed_line: The line of an installed package that made the call for the user, as `file:line`; else empty.
        order: When it ran, among all lines noted in one pass.
    """

    path: str
    line: int
    call: str
    installed_line: str = ""
    order: int = 0

    @property
    def where(self) -> str:
        """The line as `file:line`, relative if the file is in the current folder; in a notebook `In[3]:line`."""
        here = str(Path.cwd()) + os.sep
        return f"{_cell(self.path) or self.path.removeprefix(here)}:{self.line}"

    @property
    def source(self) -> str:
        """The text of the line without its comment; empty if it cannot be read."""
        return linecache.getline(self.path, self.line).partition("  # ")[0].strip()


def _cell(path: str) -> str:
    """Return the name that a notebook's cell has for its reader, such as `In[3]`; empty if `path` is a file."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = get_ipython() if get_ipython is not None else None
    if shell is None:
        return ""
    name = shell.compile.format_code_name(path)  # ("Cell", "In[3]"), as in IPython's own tracebacks
    return "" if name is None else str(name[1])


@functools.cache
def owner_of(filename: str) -> str:
    """Return whose code a file holds: "torch", "frostline", "installed" or "user"."""
    if filename.startswith((_TORCH, *_GENERATED)):
        return "torch"
    if filename.startswith(_FROSTLINE):
        return "frostline"
    if "site-packages" in Path(filename).parts or filename.startswith(_STANDARD):
        return "installed"
    return "user"


def run_pass(loss_fn: Callable[[], T]) -> T:
    """Return `loss_fn()`. The frames of the pass end at this function: see `frames`."""
    return loss_fn()


def frames() -> Iterator[FrameType]:
    """Yield the frames of the running pass, innermost first, without those that called `explain`."""
    frame: FrameType | None = sys._getframe(1)
    # By identity: whatever file or name `run_pass` has, the user's script that called `explain` is never blamed.
    while frame is not None and frame.f_code is not run_pass.__code__:
        yield frame
        frame = frame.f_back


def frame_outside(module: ModuleType) -> FrameType | None:
    """Return the innermost frame that belongs neither to frostline nor to `module`."""
    return next(
        (
            frame
            for frame in frames()
            if owner_of(frame.f_code.co_filename) != "frostline" and frame.f_globals is not vars(module)
        ),
        None,
    )


def user_frame() -> FrameType | None:
    """Return the frame of the user's function that is running now."""
    return next((frame for frame in frames() if owner_of(frame.f_code.co_filename) == "user"), None)


def current_line(call: str, order: int = 0, within: int | None = None) -> SourceLine | None:
    """Return the line that is running now; None if all of the stack is torch's.

    Args:
        call: What is called there.
        order: When it runs.
        within: `id` of a frame on the stack, to get the outermost of the user's lines inside it (or its own line)
            instead of the innermost of all.
    """
    installed: FrameType | None = None  # the innermost frame of an installed package that runs below the user's line
    chosen: FrameType | None = None
    outermost: FrameType | None = None  # of the user's frames so far
    for frame in frames():
        owner = owner_of(frame.f_code.co_filename)
        if frame.f_code is stop_gradient.__code__:
            call = "stop_gradient"  # what the user wrote, rather than the torch function that it calls
        if owner == "installed" and installed is None and chosen is None:
            installed = frame
        if owner == "user":
            chosen = chosen or frame
            outermost = frame
        if id(frame) == within:
            chosen, within = outermost or chosen, None
        if within is None and chosen is not None:
            break
    installed_line = "" if installed is None or chosen is None else _short_location(installed)
    chosen = chosen or installed
    if chosen is None:
        return None
    call = call.strip("_") if call.startswith("__") else call
    return SourceLine(chosen.f_code.co_filename, chosen.f_lineno, call, installed_line, order)


def _short_location(frame: FrameType) -> str:
    """Return `package/file.py:line`: the path from `site-packages` on, else the file's name."""
    parts = Path(frame.f_code.co_filename).parts
    start = len(parts) - 1 - parts[::-1].index("site-packages") if "site-packages" in parts else len(parts) - 2
    return f"{'/'.join(parts[start + 1 :])}:{frame.f_lineno}"
