"""The line of the user's code that is running now.

A call inside torch is of no use to who reads it; the line of their own that led there is. So the stack is walked
outwards past torch, frostline, the standard library and installed packages. Where all of it is installed code, the
innermost frame outside of torch stands in.
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
from types import FrameType
from typing import TypeVar

import torch

from frostline.gates import stop_gradient

T = TypeVar("T")

_TORCH = str(Path(torch.__file__).parent) + os.sep
_FROSTLINE = sys.modules["frostline"].__path__[0] + os.sep
_STANDARD = (sysconfig.get_paths()["stdlib"] + os.sep, sysconfig.get_paths()["platstdlib"] + os.sep)
_GENERATED = ("<frozen ", "<eval_with_key>")


@dataclass(frozen=True)
class Site:
    """A line of code, and the call there.

    Attributes:
        path: Path of the file.
        line: Its number, from 1.
        call: What was called there, such as `detach`.
        inside: The line of an installed package that made the call for the user, as `file:line`; else empty.
        order: When it ran, among all sites of one pass.
    """

    path: str
    line: int
    call: str
    inside: str = ""
    order: int = 0

    @property
    def where(self) -> str:
        """The line as `file:line`, relative to the current folder where it lies in it."""
        here = str(Path.cwd()) + os.sep
        return f"{self.path.removeprefix(here)}:{self.line}"

    @property
    def source(self) -> str:
        """The text of the line without its comment; empty where it cannot be read."""
        return linecache.getline(self.path, self.line).partition("  # ")[0].strip()


@functools.cache
def kind_of(filename: str) -> str:
    """Whose code a file holds: "torch", "frostline", "installed" or "user"."""
    if filename.startswith((_TORCH, *_GENERATED)):
        return "torch"
    if filename.startswith(_FROSTLINE):
        return "frostline"
    if "site-packages" in Path(filename).parts or filename.startswith(_STANDARD):
        return "installed"
    return "user"


def run_pass(loss_fn: Callable[[], T]) -> T:
    """Return `loss_fn()`. Where this function stands on the stack, the frames of the pass end: see `frames`."""
    return loss_fn()


def frames() -> Iterator[FrameType]:
    """The frames of the pass that runs, innermost first, without what called `explain`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not run_pass.__code__:
        yield frame
        frame = frame.f_back


def caller(*past: str) -> FrameType | None:
    """The innermost frame that is not frostline's, nor in a file whose name ends with one of `past`."""
    files = ((frame, frame.f_code.co_filename) for frame in frames())
    return next((frame for frame, name in files if kind_of(name) != "frostline" and not name.endswith(past)), None)


def users_frame() -> FrameType | None:
    """The function of the user's that runs now."""
    return next((frame for frame in frames() if kind_of(frame.f_code.co_filename) == "user"), None)


def site_here(call: str, order: int = 0, within: int | None = None) -> Site | None:
    """The line that runs now; None if it is all torch's.

    Args:
        call: What is called there.
        order: When it runs.
        within: `id` of a frame on the stack, if the outermost of the user's lines in it (itself included) is meant
            rather than the innermost of all.
    """
    innermost: FrameType | None = None  # of what is installed, outside of torch
    chosen: FrameType | None = None
    outermost: FrameType | None = None  # of the user's so far
    for frame in frames():
        name = frame.f_code.co_filename
        kind = kind_of(name)
        if frame.f_code is stop_gradient.__code__:
            call = "stop_gradient"
        if kind == "installed" and innermost is None and chosen is None:
            innermost = frame
        if kind == "user":
            chosen = chosen or frame
            outermost = frame
        if id(frame) == within:
            chosen, within = outermost or chosen, None
        if within is None and chosen is not None:
            break
    inside = "" if innermost is None or chosen is None else _where(innermost)
    chosen = chosen or innermost
    if chosen is None:
        return None
    call = call.strip("_") if call.startswith("__") else call
    return Site(chosen.f_code.co_filename, chosen.f_lineno, call, inside, order)


def _where(frame: FrameType) -> str:
    parts = Path(frame.f_code.co_filename).parts
    start = len(parts) - 1 - parts[::-1].index("site-packages") if "site-packages" in parts else len(parts) - 2
    return f"{'/'.join(parts[start + 1 :])}:{frame.f_lineno}"
