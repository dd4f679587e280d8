"""A training run that is stopped or killed at any moment leaves a usable tagger, or resumes to the same bits."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from frostline import tagger
from frostline.cli import main
from frostline.errors import ModelFolderError
from frostline.tagger import saved
from frostline.tagger.training.callbacks import Progress

KILLS = 50 if os.environ.get("FROSTLINE_SOAK") else 3
SEED = int(os.environ.get("FROSTLINE_SEED", "0"))
EPOCHS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path: Path = tmp_path_factory.mktemp("interrupted")
    dice = random.Random(0)
    names = ["oslo", "rome", "zork", "ada", "eve", "we", "left", "saw", "."]
    tag = dict.fromkeys(names[:3], "B-town") | dict.fromkeys(names[3:5], "B-person")
    sentences = [[dice.choice(names) for _ in range(dice.randint(1, 9))] for _ in range(200)]
    text = "\n".join("".join(f"{word}\t{tag.get(word, 'O')}\n" for word in words) for words in sentences)
    (path / "t.conll").write_text(text, encoding="utf-8")
    rows = [f"{word} {dice.random()} {dice.random()}\n" for word in names if word != "zork"]
    (path / "v.txt").write_text("".join(rows), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FROSTLINE_CACHE", str(path / "cache"))
        yield path


def _command(folder: Path, out: str) -> list[str]:
    files = ["--train", "t.conll", "--dev", "t.conll", "--vectors", "v.txt"]
    paths = [str(folder / word) if "." in word else word for word in files]
    return ["tagger", "train", *paths, "--out", str(folder / out), "--epochs", str(EPOCHS), "--hidden", "12"]


@pytest.fixture(scope="module")
def whole(folder: Path) -> bytes:
    assert main(_command(folder, "whole")) == 0
    return (folder / "whole" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("steps", [1, 13, 40])  # in the first epoch, at the end of one, in the fourth
def test_a_signal_saves_the_best_epoch_so_far_and_the_run_resumes_to_the_same_bits(
    number: signal.Signals,
    code: int,
    steps: int,
    folder: Path,
    whole: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, batch, done = folder / f"stopped{number}-{steps}", Progress.batch, []

    def interrupted(self: Progress, tokens: int) -> None:
        batch(self, tokens)
        done.append(tokens)
        if len(done) == steps:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "batch", interrupted)
        assert main(_command(folder, out.name)) == code
    assert len(done) == steps
    assert signal.getsignal(number) is before
    said = capsys.readouterr()
    epochs = re.findall(r"^epoch (\d)/6 .* F1 +([\d.]+)%", said.out, re.MULTILINE)
    assert len(epochs) == steps // 13
    assert said.out.splitlines()[-1].endswith("to continue, pass the same arguments and --resume")
    dev = tagger.read_conll(folder / "t.conll")
    loaded = tagger.Tagger.load(out)
    if epochs:
        assert f"{100 * loaded.evaluate(dev).f1:.1f}" == max((f1 for _, f1 in epochs), key=float)
    assert main([*_command(folder, out.name), "--resume"]) == 0
    assert (out / "model.safetensors").read_bytes() == whole
    assert not (out / saved.CHECKPOINT).exists()


@pytest.mark.parametrize("kill", range(KILLS))
def test_a_process_that_is_killed_at_any_moment_leaves_a_tagger_or_resumes_to_the_same_bits(
    kill: int, folder: Path, whole: bytes
) -> None:
    dice = random.Random(SEED * 1000 + kill)
    out, number = folder / f"killed{kill}", dice.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    command = [sys.executable, "-m", "frostline", *_command(folder, out.name), "--checkpoint-every", "0"]
    if dice.random() < 0.5:
        shutil.copytree(folder / "whole", out)  # a tagger that is there is replaced, and may not be lost either
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        moment = dice.randint(0, EPOCHS + 1)
        for (
            line
        ) in process.stdout:  # until some epoch has begun, so that a slow machine is killed as early as a fast one
            moment -= line.startswith(("coverage", "epoch"))
            if moment <= 0:
                break
        time.sleep(dice.random() * 0.3)
        process.send_signal(number)
        process.communicate(timeout=120)
    assert process.returncode in (0, -number, 128 + number)
    usable = True
    try:
        tagger.Tagger.load(out).predict([["we", "saw", "oslo"]])
    except ModelFolderError:
        usable = False
    checkpoint = (out / saved.CHECKPOINT).exists()
    assert usable or checkpoint or process.returncode != 0
    if number != signal.SIGKILL and checkpoint:
        assert usable or process.returncode < 0
    resumed = [*_command(folder, out.name), *(["--resume"] if checkpoint else [])]
    assert main(resumed) == 0
    assert (out / "model.safetensors").read_bytes() == whole
    assert {path.name for path in out.iterdir()} == {path.name for path in (folder / "whole").iterdir()}
    assert not list(folder.glob(f".{out.name}.*"))


def test_a_checkpoint_is_there_after_the_first_epoch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        Progress, "epoch", lambda self, epoch: seen.append((folder / "first" / saved.CHECKPOINT).exists())
    )
    assert main(_command(folder, "first")) == 0
    assert seen == [True] * EPOCHS


def test_a_disk_that_is_full_at_the_end_keeps_the_run_for_another_place(
    folder: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(saved, "save_file", full)
        assert main(_command(folder, "full")) == 2
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert (
        f"The training is kept: make room and pass --resume, or pass --out ELSEWHERE --resume {folder / 'full'}" in said
    )
    assert said.count("\n") == 1
    assert main([*_command(folder, "elsewhere"), "--resume", str(folder / "full")]) == 0
    assert (folder / "elsewhere" / "model.safetensors").read_bytes() == whole


def test_a_checkpoint_that_cannot_be_written_is_said_once_and_training_goes_on(
    folder: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("frostline.tagger.training.checkpoint.save_file", full)
    assert main([*_command(folder, "unsaved"), "--checkpoint-every", "0"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("No space left on device. Make room, or name another. Training goes on.") == 1
    assert (folder / "unsaved" / "model.safetensors").read_bytes() == whole


def test_too_little_space_is_told_before_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=50_000))
    assert main(_command(folder, "small")) == 2
    printed = capsys.readouterr()
    assert re.search(r"small: 0\.\d MB will be written there, and 0\.\d MB are free\. Make room", printed.err)
    assert "epoch 1" not in printed.out
    assert not (folder / "small").exists()
