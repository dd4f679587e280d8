"""`frostline tagger score` prints what conlleval prints, or JSON, or one line that says what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from frostline.cli import main


def test_the_figures_are_printed_as_conlleval_prints_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.txt"
    path.write_text("New B-a B-a\nYork I-a I-a\n\nOslo B-a O\n", encoding="utf-8")
    assert main(["tagger", "score", str(path)]) == 0
    assert capsys.readouterr().out == (
        "processed 3 tokens with 2 phrases; found: 1 phrases; correct: 1.\n"
        "accuracy:  66.67%; precision: 100.00%; recall:  50.00%; FB1:  66.67\n"
        "                a: precision: 100.00%; recall:  50.00%; FB1:  66.67  1\n"
    )


def test_json_has_the_names_of_the_metric_seqeval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.txt"
    path.write_text("Oslo\tB-a\tB-a\nis\tO\tB-a\n", encoding="utf-8")
    assert main(["tagger", "score", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "a": {"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "number": 1},
        "overall_precision": 0.5,
        "overall_recall": 1.0,
        "overall_f1": 2 / 3,
        "overall_accuracy": 0.5,
    }


def test_a_wrong_file_gets_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.txt"
    path.write_text("Oslo O O\nOslo O\n", encoding="utf-8")
    assert main(["tagger", "score", str(path)]) == 2
    assert main(["tagger", "score", str(tmp_path / "none.txt")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert f"{path}:2: 2 columns" in first
    assert "none.txt: No such file or directory" in second


def test_types_of_any_letters_are_printed_in_utf8_whatever_the_locale_says(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("Oslo B-\u5730\u540d B-\u5730\u540d\n", encoding="utf-8")
    command = [sys.executable, "-m", "frostline", "tagger", "score", str(path)]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "latin-1"}, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "           \u5730\u540d: precision: 100.00%" in done.stdout.decode("utf-8")  # six bytes: padded to 17 bytes
