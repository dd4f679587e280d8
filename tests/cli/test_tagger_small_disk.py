"""On a disk of 5 MB, empty or full, each action of the tagger ends with a result or one line, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from frostline import tagger

Command = Callable[..., subprocess.CompletedProcess[str]]
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
def folder(disk: Path, tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "t.conll").write_text(TRAIN * 5, encoding="utf-8")
    (tmp_path / "v.txt").write_text("we 1 2\nleft 2 1\noslo 3 3\nrome 3 2.5\n. 0 1\n", encoding="utf-8")
    yield tmp_path
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture
def run(folder: Path) -> Command:
    def command(*words: str, stdout: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"FROSTLINE_CACHE": str(folder / "cache")}
        with (stdout or Path(os.devnull)).open("w") as file:
            return subprocess.run(
                [sys.executable, "-m", "frostline", "tagger", *words],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE if stdout is None else file,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                timeout=300,
            )

    return command


def _train(out: Path, *more: str) -> list[str]:
    files = ["--train", "t.conll", "--dev", "t.conll", "--vectors", "v.txt", "--out", str(out)]
    return ["train", *files, "--epochs", "3", "--checkpoint-every", "0", *more]


def _fill(disk: Path, left: int) -> None:
    """Leave so many bytes on the disk."""
    with (disk / "filler").open("wb") as file:
        file.write(bytes(shutil.disk_usage(disk).free - left))


def _is_one_line(done: subprocess.CompletedProcess[str], says: str) -> None:
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_does_not_fit_is_told_before_training_and_what_fits_is_trained(
    disk: Path, folder: Path, run: Command
) -> None:
    _is_one_line(run(*_train(disk / "m")), "MB will be written there")
    assert not (disk / "m").exists()
    assert run(*_train(disk / "m", "--hidden", "20")).returncode == 0
    assert tagger.Tagger.load(disk / "m").tags == ["O", "B-town"]


# As with a disk that somebody else fills meanwhile: what is free was measured before, so the check is switched off.
FULL_SOON = (
    "import sys, frostline.tagger.saved as saved; saved.check_space = lambda *given, **more: None; "
    "from frostline.cli import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.mark.parametrize("left", [0, 20_000, 60_000, 300_000, 600_000])
def test_a_disk_that_fills_during_training_costs_nothing_that_was_learned(
    left: int, disk: Path, folder: Path, run: Command
) -> None:
    assert run(*_train(folder / "whole", "--hidden", "40")).returncode == 0
    _fill(disk, left)
    environment = os.environ | {"FROSTLINE_CACHE": str(folder / "cache")}
    command = [sys.executable, "-c", FULL_SOON, "tagger", *_train(disk / "m", "--hidden", "40")]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    saved = (folder / "whole" / "model.safetensors").read_bytes()
    if done.returncode == 0:
        assert (disk / "m" / "model.safetensors").read_bytes() == saved
    else:
        _is_one_line(done, "cannot be written")
        assert not (disk / "m" / "config.json").exists()
        assert {path.name for path in disk.iterdir()} <= {"filler", "m"}
        (disk / "filler").unlink()
        resumed = ["--resume"] if (disk / "m" / "training.safetensors").exists() else []
        assert run(*_train(disk / "m", "--hidden", "40", *resumed)).returncode == 0
        assert (disk / "m" / "model.safetensors").read_bytes() == saved


def test_predicting_and_evaluating_to_a_full_disk_is_one_line(disk: Path, folder: Path, run: Command) -> None:
    assert run(*_train(disk / "m", "--hidden", "20")).returncode == 0
    (folder / "text.txt").write_text("We left Oslo .\n" * 2000, encoding="utf-8")
    _fill(disk, 8192)
    before = {path.name: path.read_bytes() for path in (disk / "m").iterdir()}
    _is_one_line(run("predict", str(disk / "m"), "text.txt", stdout=disk / "out"), "Make room")
    (disk / "out").unlink()
    _fill(disk, 0)
    _is_one_line(run("evaluate", str(disk / "m"), "t.conll", "--run-folder", str(disk / "m")), "cannot be written to")
    assert {path.name: path.read_bytes() for path in (disk / "m").iterdir()} == before
    assert run("predict", str(disk / "m"), "text.txt").returncode == 0  # reading needs no room
