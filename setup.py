"""Where FROSTLINE_PREBUILT=1, put compiled kernels into the wheel; all else is in pyproject.toml.

With it, a C++ compiler makes a wheel for Linux on x86-64 that needs none; any Python can use it, since ctypes loads the
kernels. Without it, the wheel is for every system, and what can compile does so at the first use.
"""

import os
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
PACKAGE = HERE / "src" / "frostline"
KERNELS = (
    ("optim/kernel.cpp",),
    ("changes/kernel.cpp",),
    ("word2vec/arithmetic.h", "word2vec/team.h", "word2vec/kernel.cpp"),
    ("word2vec/encoder.cpp",),
)


class PlatformDistribution(Distribution):
    """A distribution that is not the same on every system."""

    def has_ext_modules(self) -> bool:
        """Return True: there is machine code in it."""
        return True


class BuildWithKernels(build_py):
    """Copy the package, and compile the kernels beside it."""

    def run(self) -> None:
        """Make a library of each kernel for each instruction set."""
        super().run()
        sys.path.insert(0, str(HERE / "src"))
        from frostline.optim import compiler, prebuilt

        folder = Path(self.build_lib) / prebuilt.FOLDER.relative_to(HERE / "src")
        folder.mkdir(parents=True, exist_ok=True)
        for files in KERNELS:
            code = compiler.read([PACKAGE / file for file in files])
            for level in prebuilt.LEVELS:
                library = folder / prebuilt.file_name(code, level)
                compiler.build(compiler.find_compiler(), code, f"-march={level}", library)


class WheelForAnyPython(bdist_wheel):
    """A wheel that depends on the system, but not on Python's version."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return py3-none and the system."""
        return "py3", "none", super().get_tag()[2]


if os.environ.get("FROSTLINE_PREBUILT") == "1":
    setup(distclass=PlatformDistribution, cmdclass={"build_py": BuildWithKernels, "bdist_wheel": WheelForAnyPython})
else:
    setup()
