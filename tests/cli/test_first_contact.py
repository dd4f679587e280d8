"""The first minute with the command: its version, tab completion, and streams that are closed."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import frostline as fl
from frostline.cli import main

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a POSIX shell closes the streams")


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command line of sh; `frostline` is this one."""
    whole = f'frostline() {{ "{sys.executable}" -m frostline "$@"; }}\n{command}'
    return subprocess.run(
        ["sh", "-c", whole], capture_output=True, text=True, cwd=folder, env=os.environ | environment, check=False
    )


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    (tmp_path / "v.txt").write_text("a 1 2\nb 2 3\n")
    return tmp_path


def test_the_version_is_one_line_and_loads_no_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    line = capsys.readouterr().out
    python = ".".join(map(str, sys.version_info[:3]))
    assert line.startswith(f"frostline {fl.__version__} (Python {python}, torch {version('torch')}, numpy ")
    assert line.count("\n") == 1
    code = "import sys\nfrom frostline.cli import main\nmain(['--version'])\nprint('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("typed", "offered", "not_offered"),
    [
        ("frostline ve", {"vectors"}, {"tagger"}),
        ("frostline vectors ", {"info", "cover", "near"}, {"train"}),
        ("frostline tagger train --de", {"--dev", "--device"}, {"--train"}),
        ("frostline digest v", {"v.txt"}, set()),
    ],
)
def test_the_shell_is_offered_what_can_come_next(
    typed: str, offered: set[str], not_offered: set[str], vectors: Path
) -> None:
    answer = vectors / "answer"
    code = "import sys; sys.argv[0] = 'frostline'; from frostline.cli import main; sys.exit(main())"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": typed, "COMP_POINT": str(len(typed)), "_ARGCOMPLETE_IFS": "\n"}
    where = {"_ARGCOMPLETE_STDOUT_FILENAME": str(answer)}
    subprocess.run([sys.executable, "-c", code], env=os.environ | asked | where, cwd=vectors, check=True)
    found = {word.strip() for word in answer.read_text().split("\n")}
    assert offered <= found
    assert not found & not_offered


def test_a_closed_stdin_is_refused_where_it_would_be_read(vectors: Path) -> None:
    done = shell("frostline vectors cover v.txt <&-", vectors)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "frostline: stdin is closed. Name a file, or pipe one in.\n"
    done = shell("frostline word2vec train - --out new.txt <&-", vectors)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "stdin is closed" in done.stderr
    assert sorted(path.name for path in vectors.iterdir() if path.is_file()) == ["v.txt"]


def test_a_closed_stdin_is_of_no_matter_elsewhere(tmp_path: Path) -> None:
    done = shell("frostline --version <&-", tmp_path)
    assert (done.returncode, done.stdout.split()[0], done.stderr) == (0, "frostline", "")


@pytest.mark.parametrize("closed", [">&-", "<&- >&-"])
def test_a_closed_stdout_is_refused(closed: str, tmp_path: Path) -> None:
    done = shell(f"frostline --version {closed}", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "frostline: stdout is closed, cannot write output. Send it to a file, or to /dev/null.\n"


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full"])
def test_errors_that_nobody_can_read_go_nowhere_else_and_the_exit_code_stays(closed: str, tmp_path: Path) -> None:
    if "full" in closed and not Path("/dev/full").exists():
        closed = "2>&-"
    for command in ("nonsense", "tagger evaluate no/such/folder dev.conll"):
        done = shell(f"frostline {command} {closed}", tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
    done = shell(f"frostline --version {closed}", tmp_path)
    assert (done.returncode, done.stdout.split()[0]) == (0, "frostline")


def test_a_file_that_is_written_while_stderr_is_closed_holds_nothing_but_its_own(
    vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROSTLINE_CACHE", str(vectors / "cache"))
    done = shell("frostline vectors convert v.txt closed.safetensors 2>&- <&-", vectors)
    assert main(["vectors", "convert", str(vectors / "v.txt"), str(vectors / "plain.safetensors")]) == done.returncode
    assert done.returncode == 0
    assert (vectors / "closed.safetensors").read_bytes() == (vectors / "plain.safetensors").read_bytes()


def test_a_reader_that_has_seen_enough_gets_no_traceback(vectors: Path) -> None:
    (vectors / "many.txt").write_text("".join(f"word{i} {i} 1\n" for i in range(20_000)))
    done = shell("frostline vectors near many.txt word1 --count 20000 | head -1", vectors)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")
