"""Compile kernel.cpp once, keep it in the cache folder, and load it with ctypes.

Plain `c++ -shared`, no headers of torch: it builds in about a second and holds for every version of torch. The name of
the file in the cache is a hash of the source, the flags and what the compiler says it predefines: its own version and
the features of this machine's processor. A folder shared by different machines therefore holds one file for each. A
file is compiled under a temporary name and renamed when it is whole, so any number of processes may build at the same
time. Where the cache cannot be written, or belongs to somebody else, each process compiles for itself.
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
from pathlib import Path

from frostline.files import cache_folder

SOURCE = Path(__file__).with_name("kernel.cpp")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared")
_SECONDS = 120  # a compiler that takes longer is stuck


class CannotBuild(Exception):
    """There is no kernel on this machine; the message says why."""


def load() -> tuple[ctypes.CDLL, str]:
    """Return the kernel, compiled now or earlier, and a sentence on where it is from.

    Raises:
        CannotBuild: No compiler, one that fails, or a result that does not load.

    Cost: about a second the first time on a machine, then some 20 ms in each process.
    """
    compiler = _compiler()
    name = f"{_key(compiler)}.so"
    folder = cache_folder("kernel")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(folder):
            raise PermissionError
        if not ((kept := folder / name).exists() and _is_ours(kept)):
            _compile(compiler, kept)
        try:
            return ctypes.CDLL(str(kept)), f"compiled by {compiler[0]}, kept in {folder}"
        except OSError:  # damaged since: once more
            _compile(compiler, kept)
            return ctypes.CDLL(str(kept)), f"compiled by {compiler[0]}, kept in {folder}"
    except OSError:
        return _load_from_nowhere(compiler), f"compiled by {compiler[0]} for this process: cannot write to {folder}"


def _load_from_nowhere(compiler: Sequence[str]) -> ctypes.CDLL:
    """Compile into a folder that is gone again when this returns; what is loaded stays."""
    try:
        with tempfile.TemporaryDirectory(prefix="frostline-", ignore_cleanup_errors=True) as place:
            _compile(compiler, path := Path(place) / "kernel.so")
            return ctypes.CDLL(str(path))
    except OSError as error:
        raise CannotBuild(f"the compiled kernel does not load: {error}") from None


def _compiler() -> list[str]:
    """The command of the compiler: $CXX, or the first that is there."""
    if own := shlex.split(os.environ.get("CXX", "")):
        return own
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return [path]
    raise CannotBuild("no C++ compiler found (c++, g++ or clang++; $CXX names another)")


def _key(compiler: Sequence[str]) -> str:
    """What the machine code depends on, hashed."""
    if not SOURCE.is_file():
        raise CannotBuild(f"{SOURCE.name} was not installed with frostline")
    predefined = _run([*compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull])
    parts = [SOURCE.read_bytes(), predefined, " ".join((*compiler, *_FLAGS)).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def _compile(compiler: Sequence[str], to: Path) -> None:
    """Compile under a temporary name in the same folder, then rename."""
    handle, part = tempfile.mkstemp(suffix=".part", dir=to.parent)
    os.close(handle)
    try:
        _run([*compiler, *_FLAGS, "-o", part, str(SOURCE)])
        Path(part).chmod(0o700)
        Path(part).replace(to)
    finally:
        Path(part).unlink(missing_ok=True)


def _run(command: Sequence[str]) -> bytes:
    """What a command prints; a failure becomes CannotBuild with the first line of what it says."""
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBuild(f"the compiler {command[0]} cannot be run: {error}") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().split("\n", 1)[0]
        raise CannotBuild(f"the compiler {command[0]} failed: {said or f'exit code {done.returncode}'}")
    return done.stdout


def _is_ours(path: Path) -> bool:
    """Whether nobody but this user can have put machine code there."""
    if not hasattr(os, "getuid"):
        return True
    stat = path.stat()
    return stat.st_uid == os.getuid() and not stat.st_mode & 0o022
