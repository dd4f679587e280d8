"""Compile a C++ file, such as kernel.cpp, once, keep the library in the cache folder, and load it with ctypes.

The command is plain `c++ -shared`, without torch's headers: it takes about a second, and the library works with every
version of torch. The name of the file in the cache is a hash of the source, the flags, and the macros that the compiler
predefines: its own version and the features of this machine's CPU. A folder shared by different machines therefore
holds one file for each. The file is written atomically, so any number of processes may compile at the same time. If the
cache is not writable, or belongs to another user, each process compiles for itself.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from frostline.files import cache_folder, replacing

if TYPE_CHECKING:
    from importlib.abc import Traversable

SOURCE = resources.files(__package__).joinpath("kernel.cpp")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared")
_SECONDS = 120  # a compiler that takes longer is stuck


class BuildError(Exception):
    """The kernel cannot be compiled or loaded on this machine; the message says why."""


def load(*sources: Traversable) -> tuple[ctypes.CDLL, str]:
    """Return a kernel, compiled now or earlier, and a sentence that says where it is from.

    Args:
        sources: C++ files, compiled as one; they include standard headers only. None: the kernel of the row optimizers.

    Raises:
        BuildError: No compiler was found, it fails, or the library does not load.

    Cost: about a second the first time on a machine, then some 20 ms in each process.
    """
    code = _read(sources or (SOURCE,))
    compiler = _find_compiler()
    name = f"{_cache_key(compiler, code)}.so"
    folder = cache_folder("kernel")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(folder):
            raise PermissionError
        if not ((library := folder / name).exists() and _is_ours(library)):
            _compile(compiler, code, library)
        try:
            return ctypes.CDLL(str(library)), f"compiled by {compiler[0]}, kept in {folder}"
        except OSError:  # the file is damaged: compile it again, once
            _compile(compiler, code, library)
            return ctypes.CDLL(str(library)), f"compiled by {compiler[0]}, kept in {folder}"
    except OSError:
        return _load_temporary(compiler, code), f"compiled by {compiler[0]} for this process: cannot write to {folder}"


def _load_temporary(compiler: Sequence[str], code: bytes) -> ctypes.CDLL:
    """Compile into a temporary folder and load the library, which stays loaded when the folder is removed."""
    try:
        with tempfile.TemporaryDirectory(prefix="frostline-", ignore_cleanup_errors=True) as folder:
            _compile(compiler, code, library := Path(folder) / "kernel.so")
            return ctypes.CDLL(str(library))
    except OSError as error:
        raise BuildError(f"the compiled kernel does not load: {error}") from None


def _find_compiler() -> list[str]:
    """Return the compiler's command: $CXX, or the first of the usual names that is installed."""
    if own := shlex.split(os.environ.get("CXX", "")):
        return own
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return [path]
    raise BuildError("no C++ compiler found (c++, g++ or clang++; $CXX names another)")


def _read(sources: Sequence[Traversable]) -> bytes:
    for source in sources:
        if not source.is_file():
            raise BuildError(f"{source.name} was not installed with frostline")
    return b"".join(source.read_bytes() for source in sources)


def _cache_key(compiler: Sequence[str], code: bytes) -> str:
    """Return a hash of everything that the machine code depends on."""
    predefined = _run([*compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull])
    parts = [code, predefined, " ".join((*compiler, *_FLAGS)).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def _compile(compiler: Sequence[str], code: bytes, library: Path) -> None:
    """Compile the kernel to `library`. The compiler reads the source from its input: it need not be a file on disk."""
    with replacing(library, mode=0o700) as unfinished:
        _run([*compiler, *_FLAGS, "-o", str(unfinished), "-x", "c++", "-"], code)


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


def _is_ours(path: Path) -> bool:
    """Return whether only this user can have written the machine code in `path`."""
    if not hasattr(os, "getuid"):
        return True
    stat = path.stat()
    return stat.st_uid == os.getuid() and not stat.st_mode & 0o022
