"""Let torch's build with CUDA run on a machine without CUDA's libraries: 0.5 GB to download instead of 3.

The registry has CPU builds of torch's newest versions for macOS only. On Linux, `pip install --no-deps torch==X` brings
torch's own libraries; each library of CUDA that they are linked with is replaced here by one in which every function
returns 100, "no device". So `torch.cuda.is_available()` is False, and nothing else of CUDA is ever called.

Run:    python .ci/without_cuda.py VENV     needs gcc, nm and readelf
"""

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

CUDA = re.compile(r"lib(cu|nccl|nv)")
ALL = "*"  # of symbols without a version: the first library defines them all


def run(*command: object) -> str:
    """Return what a command prints."""
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout


def missing(libraries: list[Path]) -> dict[str, dict[str, set[str]]]:
    """Return, for each library of CUDA that these are linked with, the functions that they use, by version."""
    found: dict[str, dict[str, set[str]]] = {}
    version_of: dict[str, str] = {}
    wanted: set[tuple[str, str]] = set()
    defined: set[str] = set()
    for library in libraries:
        for name in re.findall(r"NEEDED.*\[(.*?)\]", run("readelf", "-dW", library)):
            if CUDA.match(name):
                found.setdefault(name, defaultdict(set))
        file = ""
        for kind, name in re.findall(r"(File|Name): (\S+)", run("readelf", "-VW", library)):
            file = name if kind == "File" else file
            if kind == "Name" and CUDA.match(file):
                version_of[name] = file
        symbols = run("nm", "-D", "--with-symbol-versions", library).splitlines()
        for *_, kind, symbol in (line.split() for line in symbols):
            name, _, version = symbol.partition("@")
            if kind in "Uwv":
                wanted.add((name, version.strip("@")))
            else:
                defined.add(name)
    for name, version in wanted:
        if version in version_of:
            found[version_of[version]][version].add(name)
        elif not version and name not in defined and re.match(r"(cu|nccl|nv)", name):
            found[min(found)][ALL].add(name)
    return found


def write(folder: Path, name: str, functions: dict[str, set[str]]) -> None:
    """Make a library with these functions, by version."""
    with tempfile.TemporaryDirectory() as temporary:
        code, versions = Path(temporary, "code.c"), Path(temporary, "versions")
        names = sorted(set().union(*functions.values()))
        code.write_text("".join(f"int {function}(void) {{ return 100; }}\n" for function in names))
        named = {key: "; ".join(sorted(functions[key])) for key in sorted(functions) if key != ALL}
        scripts = [f"{key} {{ global: {exported}; }};\n" for key, exported in named.items()]
        versions.write_text("".join(scripts))
        script = [f"-Wl,--version-script={versions}"] if scripts else []
        run("gcc", "-w", "-fno-builtin", "-shared", "-fPIC", f"-Wl,-soname,{name}", *script, "-o", folder / name, code)


if __name__ == "__main__":
    (folder,) = Path(sys.argv[1]).glob("lib/python*/site-packages/torch/lib")
    libraries = missing([path for path in folder.glob("*.so*") if not CUDA.match(path.name)])
    for name, functions in libraries.items():
        write(folder, name, functions)
