"""Compile a C++ file, such as kernel.cpp, once, keep the library in the cache folder, and load it with ctypes.

The command is plain `c++ -shared`, without torch's headers: it takes about a second, and the library works with every
version of torch. Where a platform wheel brought a library that fits this CPU (prebuilt.py), nothing is compiled.

The name of the file in the cache is KEY-DIGEST.so. KEY is a hash of the source, the flags, and the macros that the
compiler predefines: its own version and the features of this machine's CPU; a folder shared by different machines
therefore holds one file for each. DIGEST is the SHA-256 of the file itself, which is compared before the file is
loaded: to load a truncated library ends the process. The file is written atomically, so any number of processes may
compile at the same time. If there is no cache, or others can write to it, each process compiles for itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from frostline.errors import FrostlineError, MissingExtraError
from frostline.files import is_private, private_folder, replacing
from frostline.optim import prebuilt

if TYPE_CHECKING:
    from importlib.abc import Traversable

SOURCE = resources.files(__package__).joinpath("kernel.cpp")
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared")
_NATIVE = "-march=native"
_SECONDS = 120  # a compiler that takes longer is stuck
_LOCK = threading.Lock()

Loaded = tuple[ctypes.CDLL | None, str]  # a library, or None, and why


class BuildError(Exception):
    """The kernel cannot be compiled or loaded on this machine; the message says why."""


def load(*sources: Traversable) -> tuple[ctypes.CDLL, str]:
    """Return a kernel, prebuilt, compiled earlier or now, and a sentence that says where it is from.

    Args:
        sources: C++ files, compiled as one; they include standard headers only. None: the kernel of the row optimizers.

    Raises:
        BuildError: No compiler was found, it fails, or the library does not load.

    Cost: prebuilt, less than a millisecond. Compiled, about a second the first time on a machine, then some 20 ms in
    each process.
    """
    code = read(sources or (SOURCE,))
    if ready := prebuilt.load(code):
        return ready
    compiler = find_compiler()
    key, by = _cache_key(compiler, code), f"compiled by {compiler[0]}"
    folder = None
    try:
        folder = private_folder("kernel")
        if library := _find(folder, key):
            return library, f"{by}, kept in {folder}"
    except OSError as error:
        where = error.filename or error.strerror
    try:
        with tempfile.TemporaryDirectory(prefix="frostline-", ignore_cleanup_errors=True) as temporary:
            compiled = Path(temporary) / "kernel.so"
            build(compiler, code, _NATIVE, compiled)
            if folder is not None:
                try:
                    return ctypes.CDLL(str(_store(compiled, folder, key))), f"{by}, kept in {folder}"
                except OSError:
                    where = folder
            # A library that is loaded stays loaded when its file is removed.
            return ctypes.CDLL(str(compiled)), f"{by} for this process: cannot use {where}"
    except OSError as error:
        raise BuildError(f"the compiled kernel does not load: {error}") from None


def chosen(load: Callable[[], Loaded]) -> Loaded:
    """Return what `load` returns; no library where the environment variable `FROSTLINE_BACKEND` asks for plain torch.

    Raises:
        MissingExtraError: FROSTLINE_BACKEND is c++, but `load` finds no library.
        FrostlineError: FROSTLINE_BACKEND has another value.
    """
    wanted = os.environ.get("FROSTLINE_BACKEND", "")
    if wanted == "torch":
        return None, "FROSTLINE_BACKEND asks for it"
    if wanted not in ("", "c++"):
        raise FrostlineError(f"FROSTLINE_BACKEND: expected torch or c++, got {wanted!r}. Set it to one, or unset it.")
    library, why = one_at_a_time(load)
    if library is None and wanted:
        fix = "Install a C++ compiler (apt install g++), or unset it."
        raise MissingExtraError(f"FROSTLINE_BACKEND: c++ cannot be used here: {why}. {fix}")
    return library, why


def one_at_a_time(load: Callable[[], Loaded]) -> Loaded:
    """Return what `load`, which keeps its result, returns: if several threads arrive here, only one compiles."""
    with _LOCK:
        return load()


def build(compiler: Sequence[str], code: bytes, march: str, library: Path) -> None:
    """Compile `code` for one instruction set, such as "-march=native", to the file `library`.

    Raises:
        BuildError: The compiler cannot be run, or fails.
    """
    _run([*compiler, *_FLAGS, march, "-o", str(library), "-x", "c++", "-"], code)


def _find(folder: Path, key: str) -> ctypes.CDLL | None:
    """Return the library in the cache, if there is one that is whole; remove what is not."""
    for file in sorted(folder.glob(f"{key}*.so")):
        if is_private(file.stat()) and file.stem == f"{key}-{_digest(file)}":
            with contextlib.suppress(OSError):  # whole, but not a library: the compiler was at fault
                return ctypes.CDLL(str(file))
        file.unlink(missing_ok=True)
    return None


def _store(compiled: Path, folder: Path, key: str) -> Path:
    """Copy a library into the cache."""
    file = folder / f"{key}-{_digest(compiled)}.so"
    with replacing(file, mode=0o700) as unfinished:
        shutil.copyfile(compiled, unfinished)
    return file


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def find_compiler() -> list[str]:
    """Return the compiler's command: $CXX, or the first of the usual names that is installed."""
    if own := shlex.split(os.environ.get("CXX", "")):
        return own
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return [path]
    raise BuildError("no C++ compiler found (c++, g++ or clang++; $CXX names another)")


def read(sources: Sequence[Traversable]) -> bytes:
    """Return the files, joined to one."""
    for source in sources:
        if not source.is_file():
            raise BuildError(f"{source.name} was not installed with frostline")
    return b"".join(source.read_bytes() for source in sources)


def _cache_key(compiler: Sequence[str], code: bytes) -> str:
    """Return a hash of everything that the machine code depends on."""
    predefined = _run([*compiler, _NATIVE, "-dM", "-E", "-x", "c++", os.devnull])
    parts = [code, predefined, " ".join((*compiler, *_FLAGS, _NATIVE)).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def _run(command: Sequence[str], stdin: bytes = b"") -> bytes:
    """Return what a command prints; raise BuildError with the first line of its stderr if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, input=stdin, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"the compiler {command[0]} cannot be run: {error}") from None
    if done.returncode != 0:
        message = done.stderr.decode(errors="replace").strip().split("\n", 1)[0]
        raise BuildError(f"the compiler {command[0]} failed: {message or f'exit code {done.returncode}'}")
    return done.stdout
