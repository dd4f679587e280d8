"""Ctrl-C and SIGTERM while a tagger trains: the first ends training after the step, the second ends the process."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frostline.tagger import Callback


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Exit with 143 at SIGTERM, so that files which are being written are removed; at Ctrl-C Python does the same."""
    with _handling([signal.SIGTERM], _exit):
        yield


@contextmanager
def stop_on_signals(callback: Callback | None) -> Iterator[list[int]]:
    """Set `callback.stop` at the first Ctrl-C or SIGTERM inside the block; yield a list that then has the exit code.

    With None signals do what they did before.
    """
    codes: list[int] = []
    if callback is None:
        yield codes
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if codes:
            _exit(number, frame)
        codes.append(128 + number)
        callback.stop = True
        print("frostline: stopping; once more to stop at once", file=sys.stderr, flush=True)

    with _handling([signal.SIGINT, signal.SIGTERM], stop):
        yield codes


def _exit(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


@contextmanager
def _handling(numbers: list[signal.Signals], handler: object) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = [signal.signal(number, handler) for number in numbers]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, old in zip(numbers, before, strict=True):
            signal.signal(number, old)
