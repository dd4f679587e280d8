"""The command starts fast, prints errors in one line, and returns an exit code."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import frostline as fl
from frostline import cli
from frostline.cli import main


def _command(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "frostline", *arguments], capture_output=True, encoding="utf-8", check=False, **more
    )  # type: ignore[call-overload]


@pytest.mark.parametrize("arguments", [["--help"], ["tagger", "--help"], ["tagger", "train", "--help"], ["tagger"]])
def test_help_and_refusals_import_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom frostline.cli import main\n"
        f"code = main({arguments!r})\nprint('torch' in sys.modules, 'numpy' in sys.modules, code)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True).stdout
    assert out.splitlines()[-1] == f"False False {0 if '--help' in arguments else 2}"


def test_every_file_of_the_folder_is_a_command_with_two_examples_in_its_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = [module.name for module in pkgutil.iter_modules(cli.__path__)]
    assert "tagger" in names
    for name in names:
        assert main([name, "--help"]) == 0
        assert capsys.readouterr().out.count(f"\n  frostline {name}") >= 2


@pytest.mark.parametrize("action", ["train", "evaluate", "predict"])
def test_every_action_of_the_tagger_shows_two_examples(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tagger", action, "--help"]) == 0
    assert capsys.readouterr().out.count(f"frostline tagger {action} ") >= 3  # usage and two examples


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "frostline: the following arguments are required: command (try: frostline --help)"),
        (["tagger"], "frostline tagger: the following arguments are required: action (try: frostline tagger --help)"),
        (["nonsense"], "frostline: argument command: invalid choice: 'nonsense'"),
        (["tagger", "predict", "a", "--js"], "unrecognized arguments: --js"),
    ],
)
def test_a_wrong_argument_gets_one_line_and_exit_code_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1


class _Command:
    """Stands in for a command file: ends as the test says."""

    HELP = "end somehow"

    def __init__(self, ending: BaseException | int) -> None:
        self.ending = ending

    def configure(self, parser: object) -> None: ...

    def run(self, args: object) -> int:
        if isinstance(self.ending, BaseException):
            raise self.ending
        return self.ending


def _end(monkeypatch: pytest.MonkeyPatch, ending: BaseException | int) -> int:
    monkeypatch.setattr(cli, "import_module", lambda name: _Command(ending))
    return main(["tagger"])


@pytest.mark.parametrize(
    ("ending", "code", "says"),
    [
        (0, 0, ""),
        (1, 1, ""),
        (fl.DataFileError("a.conll:3: no tag.\nWrite one."), 2, "frostline: a.conll:3: no tag. Write one.\n"),
        (FileNotFoundError(2, "No such file", "a.conll"), 2, "frostline: a.conll: No such file. Check the path.\n"),
        (
            PermissionError(13, "Permission denied", "a.conll"),
            2,
            "frostline: a.conll: Permission denied. Check the path.\n",
        ),
        (KeyboardInterrupt(), 130, "frostline: interrupted\n"),
    ],
)
def test_our_errors_and_the_users_files_become_one_line(
    ending: BaseException | int,
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _end(monkeypatch, ending) == code
    assert capsys.readouterr().err == says


@pytest.mark.parametrize("ending", [ZeroDivisionError("ours"), KeyError("ours"), OSError(5, "no file has this name")])
def test_any_other_error_keeps_its_traceback(ending: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(ending)):
        _end(monkeypatch, ending)


def test_python_dash_m_is_the_command() -> None:
    done = _command("tagger", "evaluate", "no/such/folder", "a.conll")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("frostline: no/such/folder: no such folder.")


@pytest.mark.skipif(os.name == "nt", reason="closing a pipe early is answered otherwise there")
def test_a_closed_pipe_ends_the_command_without_a_message(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom frostline import cli\n"
        "class Talker:\n"
        "    HELP = 'talk'\n"
        "    configure = staticmethod(lambda parser: None)\n"
        "    run = staticmethod(lambda args: print('word\\n' * 1_000_000) or 0)\n"
        "cli.import_module = lambda name: Talker\n"
        "sys.exit(cli.main(['tagger']))\n"
    )
    talker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert talker.stdout is not None
    assert talker.stdout.readline() == b"word\n"
    talker.stdout.close()
    assert talker.wait(timeout=60) == 141
    assert talker.stderr is not None
    assert talker.stderr.read() == b""
    talker.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_behind_stdout_gets_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "out.conll").write_text("Ada\tB-x\tB-x\n", encoding="utf-8")
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "frostline", "tagger", "score", str(tmp_path / "out.conll")],
            stdout=full,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            check=False,
        )
    assert (done.returncode, done.stderr) == (2, "frostline: cannot write: No space left on device. Make room.\n")


def test_a_closed_stdout_is_refused_because_output_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout", None)
    assert main(["tagger", "score", "nowhere.conll"]) == 2
    assert capsys.readouterr().err.startswith("frostline: stdout is closed, cannot write output.")
