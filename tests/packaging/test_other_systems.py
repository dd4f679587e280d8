"""Linux is where this is tested; nothing may need what macOS and Windows lack."""

import ast
import subprocess
import sys
from pathlib import Path

SMOKE = Path(__file__).with_name("smoke.py")
PACKAGE = Path(__file__).resolve().parents[2] / "src" / "frostline"
ONLY_ON_UNIX = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}


def test_no_module_is_imported_that_only_unix_has():
    imported = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module)
    assert {"os", "ctypes"} <= imported
    assert not imported & ONLY_ON_UNIX


def test_plans_row_steps_word_vectors_and_digests_work_without_what_windows_lacks(tmp_path):
    """The functions are gone, as they are there, and ctypes cannot open the program itself."""
    code = f"""
import ctypes, os, runpy, sys
import numpy, torch, torch._dynamo
for name in ("fork", "getuid", "geteuid", "getloadavg", "sched_getaffinity", "uname", "wait", "mkfifo", "chown"):
    delattr(os, name)
class CDLL(ctypes.CDLL):
    def __init__(self, name, *arguments, **options):
        if name is None:
            raise TypeError("LoadLibrary() argument 1 must be str, not None")
        super().__init__(name, *arguments, **options)
ctypes.CDLL = CDLL
sys.platform = "win32"
sys.argv = [{str(SMOKE)!r}]
runpy.run_path({str(SMOKE)!r}, run_name="__main__")
"""
    environment = {"LOCALAPPDATA": str(tmp_path), "HOME": str(tmp_path), "PATH": "", "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"moved": [3, 7, 11]' in done.stdout
