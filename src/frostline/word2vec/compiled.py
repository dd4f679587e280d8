"""Load the C++ of this room: kernel.cpp, which trains, and encoder.cpp, which reads text.

Both are optional. Without a compiler, or with FROSTLINE_BACKEND=torch, reference.py trains, in plain torch, and Python
reads the text: the same results (of training, within rounding), slower.
"""

from __future__ import annotations

from ctypes import CDLL, POINTER, Structure, c_char_p, c_double, c_int, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from importlib import resources

from frostline.optim import compiler

_SOURCES = {"kernel.cpp": ("arithmetic.h", "team.h", "kernel.cpp"), "encoder.cpp": ("encoder.cpp",)}


class RunFields(Structure):
    """What a run trains on: `struct Run` of kernel.cpp."""

    _fields_ = (
        *((name, kind) for name, kind in (("text", c_void_p), ("text_size", c_int64))),
        *((name, c_void_p) for name in ("input", "output", "input_learns", "output_learns")),
        *((name, c_int64) for name in ("words", "lines")),
        *((name, c_void_p) for name in ("keep", "alias")),
        *((name, c_int64) for name in ("window", "negatives", "skip_gram", "threads", "batch_words")),
        *((name, c_double) for name in ("alpha", "min_alpha")),
        ("total_words", c_int64),
    )


class Position(Structure):
    """Where a run is: `struct Position` of kernel.cpp."""

    key: int  # of the epoch's random numbers
    token: int  # index in the text at which the next batch begins
    paragraph: int  # the number of its first paragraph in the epoch
    words_done: int  # in all epochs
    targets: int  # in this epoch
    loss: float  # the sum over them

    _fields_ = (
        ("key", c_uint64),
        *((name, c_int64) for name in ("token", "paragraph", "words_done", "targets")),
        ("loss", c_double),
    )


def kernel() -> CDLL | None:
    """Return the compiled kernel.cpp, or None where plain torch is to train."""
    return _library("kernel.cpp")


def encoder() -> CDLL | None:
    """Return the compiled encoder.cpp, or None where Python is to read the text."""
    return _library("encoder.cpp")


def _library(name: str) -> CDLL | None:
    return compiler.chosen(lambda: _load_once(name))[0]


@cache
def _load_once(name: str) -> tuple[CDLL | None, str]:
    try:
        library, why = compiler.load(*(resources.files(__package__).joinpath(file) for file in _SOURCES[name]))
    except compiler.BuildError as error:
        return None, str(error)
    if name == "kernel.cpp":
        for dtype in ("float32", "float64"):
            train = getattr(library, f"frostline_word2vec_{dtype}")
            train.argtypes, train.restype = [POINTER(RunFields), POINTER(Position), c_int64], c_int
        return library, why
    library.frostline_encoder.restype = c_void_p
    library.frostline_encoder_free.argtypes, library.frostline_encoder_free.restype = [c_void_p], None
    library.frostline_encoder_feed.argtypes = [c_void_p, c_char_p, c_int64, POINTER(c_int32)]
    library.frostline_encoder_feed.restype = c_int64
    for field, kind in {
        "lines": c_int64,
        "words": c_int64,
        "bytes": c_void_p,
        "offsets": c_void_p,
        "counts": c_void_p,
    }.items():
        function = getattr(library, f"frostline_encoder_{field}")
        function.argtypes, function.restype = [c_void_p], kind
    return library, why
