"""On a disk of 5 MB, empty or full, each action of the tagger ends with a result or one line, and nothing is lost."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from frostline import tagger
from frostline.cli import main

TRAIN = "We\tO\nleft\tO\nOslo\tB-town\n.\tO\n\nRome\tB-town\nslept\tO\n"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk of 5 MB in memory."""
    path = tmp_path_factory.mktemp("disk")
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(path)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs a small disk, which only root can make")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def folder(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "t.conll").write_text(TRAIN * 5, encoding="utf-8")
    (tmp_path / "v.txt").write_text("we 1 2\nleft 2 1\noslo 3 3\nrome 3 2.5\n. 0 1\n", encoding="utf-8")
    yield tmp_path
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _train(folder: Path, out: Path, *more: str) -> list[str]:
    files = ["--train", "t.conll", "--dev", "t.conll", "--vectors", "v.txt"]
    paths = [str(folder / word) if "." in word else word for word in files]
    sizes = ["--epochs", "3", "--checkpoint-every", "0", *([] if "--hidden" in more else ["--hidden", "40"])]
    return ["tagger", "train", *paths, "--out", str(out), *sizes, *more]


def _fill(disk: Path, left: int) -> None:
    """Leave so many bytes on the disk."""
    with (disk / "filler").open("wb") as file:
        file.write(bytes(shutil.disk_usage(disk).free - left))


def _is_one_line(code: int, err: str, says: str) -> None:
    assert code == 2, err
    assert says in err
    assert err.count("\n") == 1


def test_what_does_not_fit_is_told_before_training_and_what_fits_is_trained(
    disk: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _is_one_line(
        main(_train(folder, disk / "m", "--hidden", "200")), capsys.readouterr().err, "MB will be written there"
    )
    assert not (disk / "m").exists()
    assert main(_train(folder, disk / "m")) == 0
    assert tagger.Tagger.load(disk / "m").tags == ["O", "B-town"]


@pytest.mark.parametrize("left", [0, 20_000, 60_000, 300_000, 600_000])
def test_a_disk_that_fills_during_training_costs_nothing_that_was_learned(
    left: int, disk: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_train(folder, folder / "whole")) == 0
    saved = (folder / "whole" / "model.safetensors").read_bytes()
    _fill(disk, left)
    capsys.readouterr()
    with monkeypatch.context() as patch:  # as where somebody else fills the disk after it was measured
        patch.setattr("frostline.tagger.saved.check_space", lambda *given, **more: None)
        code = main(_train(folder, disk / "m"))
    if code:
        _is_one_line(code, capsys.readouterr().err, "cannot be written")
        assert not (disk / "m" / "config.json").exists()
        assert {path.name for path in disk.iterdir()} <= {"filler", "m"}
        (disk / "filler").unlink()
        resumed = ["--resume"] if (disk / "m" / "training.safetensors").exists() else []
        assert main(_train(folder, disk / "m", *resumed)) == 0
    assert (disk / "m" / "model.safetensors").read_bytes() == saved
    assert code or left >= 300_000


def test_predicting_and_evaluating_to_a_full_disk_is_one_line(
    disk: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_train(folder, disk / "m")) == 0
    (folder / "text.txt").write_text("We left Oslo .\n" * 2000, encoding="utf-8")
    before = {path.name: path.read_bytes() for path in (disk / "m").iterdir()}
    _fill(disk, 8192)
    command = [sys.executable, "-m", "frostline", "tagger", "predict", str(disk / "m"), str(folder / "text.txt")]
    with (disk / "out").open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    _is_one_line(done.returncode, done.stderr, "Make room")
    (disk / "out").unlink()
    _fill(disk, 0)
    capsys.readouterr()
    code = main(["tagger", "evaluate", str(disk / "m"), str(folder / "t.conll"), "--run-folder", str(disk / "m")])
    _is_one_line(code, capsys.readouterr().err, "cannot be written to")
    assert {path.name: path.read_bytes() for path in (disk / "m").iterdir()} == before
    assert main(["tagger", "predict", str(disk / "m"), str(folder / "text.txt")]) == 0  # reading needs no room
