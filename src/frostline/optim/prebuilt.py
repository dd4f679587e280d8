"""Libraries that a platform wheel brings, so that it needs no compiler: each kernel, for three instruction sets.

setup.py makes them with the flags of compiler.py, and the best set that this CPU has is loaded. The sources compute the
same bits on every instruction set, so these are the bits of a kernel that is compiled on the spot, too. A file is named
KEY-LEVEL.so, and KEY is a hash of the source, so that a source that has changed since is compiled. A checkout and the
wheel for every system have no such files.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
from pathlib import Path

FOLDER = Path(__file__).with_name("prebuilt")
_SSE = "cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3"
_AVX2 = f"{_SSE} abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"
# The psABI's levels, the best first, and what each needs, in the words of /proc/cpuinfo.
LEVELS = {
    "x86-64-v4": f"{_AVX2} avx512f avx512bw avx512cd avx512dq avx512vl",
    "x86-64-v3": _AVX2,
    "x86-64-v2": _SSE,
}


def load(code: bytes) -> tuple[ctypes.CDLL, str] | None:
    """Return the library that was made of this source, and a sentence that says so; None if none fits."""
    if FOLDER.is_dir():
        flags = _cpu_flags()
        for level, needed in LEVELS.items():
            file = FOLDER / file_name(code, level)
            if flags.issuperset(needed.split()) and file.is_file():
                with contextlib.suppress(OSError):  # such as a C library that is older than the one it was linked with
                    return ctypes.CDLL(str(file)), f"prebuilt for {level}"
    return None


def file_name(code: bytes, level: str) -> str:
    """Return the name of the library that is made of `code` for an instruction set."""
    return f"{hashlib.sha256(code).hexdigest()[:16]}-{level}.so"


def _cpu_flags() -> set[str]:
    """Return what Linux says of the first CPU, if it is an x86."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            return set(next((line for line in lines if line.startswith("flags")), "").split())
    except OSError:
        return set()
