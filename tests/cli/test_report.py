"""`frostline report` writes a page or TensorBoard's files from a run folder, and answers wrong input in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import frostline as fl
from frostline.cli import main, report


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with fl.Recorder(tmp_path / "run") as recorder:
        for step in range(3):
            recorder(loss=step)
    return tmp_path / "run"


def test_the_page_is_in_the_run_folder_and_its_path_is_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("plotly", reason="the page's charts need plotly, of the extra report")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_the_page_is_written_where_o_says(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("plotly", reason="the page's charts need plotly, of the extra report")
    assert main(["report", str(run), "-o", str(tmp_path / "own.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'own.html'}\n"
    assert (tmp_path / "own.html").stat().st_size > 1_000_000
    assert not (run / "report.html").exists()


def test_tensorboards_files_are_written_instead_of_a_page(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard, of the extra report")
    assert main(["report", str(run), "--tensorboard", str(tmp_path / "logs")]) == 0
    assert capsys.readouterr().out == f"tensorboard --logdir {tmp_path / 'logs'}\n"
    assert list((tmp_path / "logs").glob("events.out.*"))
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (None, "run: no such folder"),
        ({}, "run: no file of a run in it"),
        ({"notes.txt": "hello"}, "run: no file of a run in it"),
        ({"plan.json": '{\n"tensors": oops}'}, "plan.json:2: damaged: "),
        ({"curves.jsonl": '{"step": 0}\n\n'}, "curves.jsonl:2: damaged: "),
        ({"record.safetensors": "short"}, "record.safetensors: damaged: "),
        ({"row_changes.safetensors": "short"}, "row_changes.safetensors: damaged: "),
    ],
)
def test_wrong_input_gets_one_line_and_exit_code_2(
    files: dict[str, str] | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if files is not None:
        (tmp_path / "run").mkdir()
        for name, text in files.items():
            (tmp_path / "run" / name).write_text(text, encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_help_needs_no_torch_and_shows_examples() -> None:
    code = "import sys; from frostline.cli import main; main(['report', '--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("  frostline report ") == 3
    assert report.HELP in done.stdout
