"""What no mode of torch sees, shown to the trace of the thread in which it happens.

    autograd.Function.apply, nn.Parameter(h)     do not go through `__torch_function__`
    autograd.backward, GradScaler.step           what the user does of a step that is watched
    a thread that the pass starts, or hands work to     has no modes: the trace is entered there as well

The patches are shared: the first trace installs them, the last removes them, in whatever order traces end. A thread
without a trace runs what was there before.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode


class Tracer(Protocol):
    """What the patches call."""

    def run_function(self, function: Any, args: Any, run: Callable[[], Any]) -> Any:
        """Run a custom autograd.Function."""

    def run_backward(self, tensors: Any, run: Callable[[], Any]) -> Any:
        """Run a backward pass."""

    def note_scaler_step(self) -> None:
        """Note that a GradScaler was asked to step."""

    def note_parameter(self, parameter: torch.Tensor) -> None:
        """Note a Parameter that was made."""

    def run_call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a torch function."""

    @property
    def ended(self) -> bool:
        """Whether nothing is to be noted any more."""


class _ThreadsTracer(threading.local):
    tracer: Tracer | None = None
    in_pool = False  # while a pool starts a worker, which outlives the work


_this_thread = _ThreadsTracer()
_lock = threading.Lock()
_running = 0
_originals: dict[tuple[Any, str], tuple[Any, Any]] = {}  # where -> what was there, and the patch


def is_traced(tracer: Tracer | None = None) -> bool:
    """Return whether a trace, or this one, sees what this thread does."""
    seen_by_one = _this_thread.tracer is not None
    return seen_by_one if tracer is None else _this_thread.tracer is tracer


@contextlib.contextmanager
def patched_for(tracer: Tracer) -> Iterator[None]:
    """Show `tracer` what this thread does in the block."""
    global _running
    with _lock:
        if not _running:
            _install()
        _running += 1
    try:
        with seen_by(tracer):
            yield
    finally:
        with _lock:
            _running -= 1
            if not _running:
                _remove()


@contextlib.contextmanager
def seen_by(tracer: Tracer) -> Iterator[None]:
    """Show `tracer` what this thread does in the block; the patches are installed already."""
    before, _this_thread.tracer = _this_thread.tracer, tracer
    try:
        yield
    finally:
        _this_thread.tracer = before


def _install() -> None:
    function: Any = torch.autograd.Function
    parameter: Any = torch.nn.Parameter
    apply, new = function.__dict__["apply"], parameter.__dict__["__new__"]
    start, submit = threading.Thread.start, ThreadPoolExecutor.submit
    backward, scaler_step = torch.autograd.backward, torch.amp.GradScaler.step

    def traced_apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        run = apply.__get__(None, cls)
        if _this_thread.tracer is None:
            return run(*args, **kwargs)
        return _this_thread.tracer.run_function(cls, (*args, *kwargs.values()), lambda: run(*args, **kwargs))

    def traced_new(cls: Any, *args: Any, **kwargs: Any) -> Any:
        made = new.__func__(cls, *args, **kwargs)
        if _this_thread.tracer is not None:
            _this_thread.tracer.note_parameter(made)
        return made

    def traced_start(thread: threading.Thread) -> None:
        if _this_thread.tracer is not None and not _this_thread.in_pool:
            thread.run = _traced(_this_thread.tracer, thread.run)  # type: ignore[method-assign]
        start(thread)

    def traced_submit(pool: ThreadPoolExecutor, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        if _this_thread.tracer is None:
            return submit(pool, fn, *args, **kwargs)
        _this_thread.in_pool = True
        try:
            return submit(pool, _traced(_this_thread.tracer, fn), *args, **kwargs)
        finally:
            _this_thread.in_pool = False

    def traced_backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        if _this_thread.tracer is None:
            return backward(tensors, *args, **kwargs)
        return _this_thread.tracer.run_backward(tensors, lambda: backward(tensors, *args, **kwargs))

    def traced_scaler_step(scaler: Any, *args: Any, **kwargs: Any) -> Any:
        if _this_thread.tracer is not None:
            _this_thread.tracer.note_scaler_step()
        return scaler_step(scaler, *args, **kwargs)

    _patch(torch.autograd, "backward", traced_backward)
    _patch(torch.amp.GradScaler, "step", traced_scaler_step)
    _patch(function, "apply", classmethod(traced_apply))
    _patch(parameter, "__new__", staticmethod(traced_new))
    _patch(threading.Thread, "start", traced_start)
    _patch(ThreadPoolExecutor, "submit", traced_submit)


def _patch(where: Any, name: str, patch: Any) -> None:
    _originals[where, name] = vars(where)[name], patch
    setattr(where, name, patch)


def _remove() -> None:
    for (where, name), (original, patch) in _originals.items():
        if vars(where)[name] is patch:  # else somebody has patched it since, and calls ours, which calls the original
            setattr(where, name, original)
    _originals.clear()


def _traced(tracer: Tracer, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with _Mode(tracer), seen_by(tracer):
            return function(*args, **kwargs)

    return run


class _Mode(TorchFunctionMode):
    """The mode of a thread that the traced pass has started; the thread may outlive the trace."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._tracer.ended or torch.compiler.is_compiling():
            return func(*args, **(kwargs or {}))
        return self._tracer.run_call(func, args, kwargs)
