"""Training that was killed resumes bit for bit, from a file that is whole or missing."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import frostline as fl
from frostline import tagger
from frostline.tagger.saved import CHECKPOINT, check_free
from frostline.tagger.training.callbacks import Progress
from frostline.tagger.training.checkpoint import Checkpoint


def _train(toy: Any, **changes: Any) -> tagger.TrainingRun:
    other = [(tokens, [tag.replace("person", "who") for tag in tags]) for tokens, tags in toy.train[:30]]
    given = {"epochs": 3, "config": toy.config, "auxiliary": [other]} | changes
    return tagger.train(given.pop("train", toy.train[:60]), toy.dev, toy.vectors, **given)


def _interrupted(toy: Any, path: Path, steps: int, **changes: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        _train(toy, checkpoint=path, checkpoint_every=0, callback=toy.stop(steps), **changes)


def _same(run: tagger.TrainingRun, other: tagger.TrainingRun) -> bool:
    weights, others = run.tagger.model.state_dict(), other.tagger.model.state_dict()
    return all(torch.equal(weights[name].view(torch.int32), others[name].view(torch.int32)) for name in weights) and [
        (epoch.number, epoch.loss, epoch.dev_f1, epoch.tokens) for epoch in run.history
    ] == [(epoch.number, epoch.loss, epoch.dev_f1, epoch.tokens) for epoch in other.history]


@pytest.mark.parametrize("learn", ["missing", "none", "all"])
@pytest.mark.parametrize("steps", [1, 7, 12, 13, 20, 30])  # 12, 10 and 8 steps an epoch
def test_interrupted_at_any_step_and_resumed_equals_uninterrupted(
    toy: Any, tmp_path: Path, learn: Any, steps: int
) -> None:
    whole = _train(toy, learn=learn)
    _interrupted(toy, tmp_path / "c", steps, learn=learn)
    torch.manual_seed(99)  # whatever the process drew before
    resumed = _train(toy, learn=learn, checkpoint=tmp_path / "c", resume=True)
    assert _same(resumed, whole)
    assert resumed.audit == whole.audit
    assert not _same(_train(toy, learn=learn, seed=1), whole)


def test_a_training_that_reads_characters_resumes_bit_for_bit_and_only_with_as_many_filters(
    toy: Any, tmp_path: Path
) -> None:
    reading, others = (dataclasses.replace(toy.config, char_filters=count) for count in (6, 7))
    _interrupted(toy, tmp_path / "c", 17, config=reading)
    resumed = _train(toy, checkpoint=tmp_path / "c", resume=True, config=reading)
    assert "char_cnn.weight" in resumed.tagger.model.state_dict()
    assert _same(resumed, _train(toy, config=reading))
    with pytest.raises(fl.RunFolderError, match="written by a training with char_filters 6, and here it is 7"):
        _train(toy, checkpoint=tmp_path / "c", resume=True, config=others)


def test_interrupted_twice_and_resumed_equals_uninterrupted(toy: Any, tmp_path: Path) -> None:
    _interrupted(toy, tmp_path / "c", 5)
    _interrupted(toy, tmp_path / "c", 17, resume=True)
    assert _same(_train(toy, checkpoint=tmp_path / "c", resume=True), _train(toy))


_SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from frostline import tagger
from frostline.vectors import Vectors
words = [f"w{i}" for i in range(50)]
vectors = Vectors(words, np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32))
tokens = [[f"w{(7 * i + j) % 60}" for j in range(1 + i % 9)] for i in range(120)]
sentences = [(line, ["B-x" if word < "w3" else "O" for word in line]) for line in tokens]
config = tagger.TaggerConfig(hidden=8, shape_width=2, batch_size=4)
run = tagger.train(sentences, sentences[:30], vectors, epochs=4, config=config, checkpoint=sys.argv[1],
                   checkpoint_every=0, resume=Path(sys.argv[1]).exists())
run.tagger.save(sys.argv[2])
"""


def test_a_process_killed_again_and_again_ends_with_the_files_of_an_undisturbed_one(tmp_path: Path) -> None:
    def start(name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", _SCRIPT, tmp_path / f"{name}.checkpoint", tmp_path / name])

    assert start("whole").wait(timeout=120) == 0
    kills, steps = 0, []
    path = tmp_path / "killed.checkpoint"
    for more in (1, 20, 45):  # of 120 steps
        process, target = start("killed"), (steps[-1] if steps else 0) + more
        while process.poll() is None and (not path.exists() or _steps(path) < target):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        steps.append(_steps(path))
    assert kills == 3
    assert steps == sorted(set(steps))
    assert start("killed").wait(timeout=120) == 0
    for file in ("model.safetensors", "config.json", "words.json"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


_KILLED_IN_WRITING = """
import os, signal
from frostline.tagger.training import checkpoint
written = []
def killed(tensors, path, header, save=checkpoint.save_file):
    written.append(save(tensors, path, header))
    if len(written) == 20:
        path.with_name(".tmpAbCdEf").write_bytes(b"half")  # as safetensors does, under a name of its choice
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save_file = killed
"""


def test_a_process_killed_while_writing_a_checkpoint_leaves_nothing_that_training_refuses(tmp_path: Path) -> None:
    def run(begin: str, out: Path) -> int:
        return subprocess.run([sys.executable, "-c", begin + _SCRIPT, out / CHECKPOINT, out], timeout=120).returncode

    for _ in range(2):
        assert run(_KILLED_IN_WRITING, tmp_path / "killed") == -signal.SIGKILL
        assert len(list((tmp_path / "killed").iterdir())) > 1
        check_free(tmp_path / "killed")
    assert _steps(tmp_path / "killed" / CHECKPOINT) == 19 + 18  # one write more than steps: after the first epoch
    assert run("", tmp_path / "killed") == run("", tmp_path / "whole") == 0
    for file in ("model.safetensors", "config.json", "words.json"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert len(list((tmp_path / "killed").iterdir())) == 3


def test_two_trainings_that_write_one_checkpoint_at_once_both_write_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=60)

    def together(tensors: Any, path: Path, header: Any) -> None:
        save_file(tensors, path, header)
        both.wait()

    monkeypatch.setattr("frostline.tagger.training.checkpoint.save_file", together)
    loops: list[Any] = [SimpleNamespace(tensors=lambda: {"a": torch.ones(3)}, progress=dict) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(Checkpoint(tmp_path / "c", {}, every=0).write, loop) for loop in loops]:
            done.result()
    assert load_file(tmp_path / "c")["a"].tolist() == [1, 1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def _steps(path: Path) -> int:
    data = path.read_bytes()  # in a single read: the process may replace the file
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found: int = json.loads(header["__metadata__"]["frostline training"])["progress"]["steps"]
    return found


def test_a_checkpoint_is_written_every_few_seconds_after_the_first_epoch_and_at_the_end_and_leaves_no_other_file(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def noted(tensors: Any, path: Path, header: Any) -> None:
        save_file(tensors, path, header)
        written.append(json.loads(header["frostline training"])["progress"]["history"])

    with monkeypatch.context() as patch:
        patch.setattr("frostline.tagger.training.checkpoint.save_file", noted)
        _train(toy, checkpoint=tmp_path / "rare", checkpoint_every=1e6)
    assert [len(history) for history in written] == [1, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["rare"]
    _train(toy, checkpoint=tmp_path / "new" / "folder" / "often", checkpoint_every=0)
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["often"]


def test_a_failed_write_leaves_the_previous_checkpoint(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _interrupted(toy, tmp_path / "c", 5)
    before = (tmp_path / "c").read_bytes()

    def full_disk(tensors: Any, path: Path, header: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("frostline.tagger.training.checkpoint.save_file", full_disk)
    with pytest.raises(fl.RunFolderError, match=re.escape(f"{tmp_path / 'c'}: cannot be written: ")):
        _train(toy, checkpoint=tmp_path / "c", checkpoint_every=0, resume=True)
    assert (tmp_path / "c").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_the_callback_is_given_the_point_where_training_resumes(
    toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _interrupted(toy, tmp_path / "c", 20)
    with Progress(3, 400) as progress:
        run = _train(toy, checkpoint=tmp_path / "c", resume=True, callback=progress)
    lines = capsys.readouterr().out.splitlines()
    (resumed,) = [line for line in lines if line.startswith("resumed")]
    assert re.fullmatch(r"resumed  after 1 epochs and \d+ tokens of the next", resumed)
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["2/3", "3/3"]
    assert [epoch.number for epoch in run.history] == [1, 2, 3]


def test_training_stops_when_patience_ends_and_resumed_it_stops_there_too(toy: Any, tmp_path: Path) -> None:
    config = dataclasses.replace(toy.config, learning_rate=1e-9)  # F1 stays 0; the loss alone decides
    run = _train(toy, config=config, epochs=9, patience=2)
    assert len(run.history) == run.best.number + 2 < 9
    _interrupted(toy, tmp_path / "c", 20, config=config, epochs=9)
    assert _same(_train(toy, config=config, epochs=9, patience=2, checkpoint=tmp_path / "c", resume=True), run)
    assert len(_train(toy, epochs=3, patience=3).history) == 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 1}, "written by a training with seed 0, and here it is 1. Pass the same"),
        ({"epochs": 4}, "with epochs 3, and here it is 4"),
        ({"learn": "all"}, "with learn 'missing', and here it is 'all'"),
        ({"train": "LESS"}, "written by a training with data "),
        ({"auxiliary": []}, "written by a training with data "),
        ({"config": tagger.TaggerConfig()}, "with hidden 16, and here it is 200"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(toy: Any, tmp_path: Path, changes: Any, says: str) -> None:
    _interrupted(toy, tmp_path / "c", 3)
    given = {name: toy.train[:59] if value == "LESS" else value for name, value in changes.items()}
    with pytest.raises(fl.RunFolderError, match=re.escape(says)):
        _train(toy, checkpoint=tmp_path / "c", resume=True, **given)


def test_other_vectors_are_noticed(toy: Any, tmp_path: Path) -> None:
    _interrupted(toy, tmp_path / "c", 3)
    changed = dataclasses.replace(toy, vectors=type(toy.vectors)(toy.vectors.words, toy.vectors.matrix + 1e-6))
    with pytest.raises(fl.RunFolderError, match="written by a training with vectors "):
        _train(changed, checkpoint=tmp_path / "c", resume=True)


def _header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            held = json.loads(file.metadata()["frostline training"])
        change(held)
        save_file(load_file(path), path, {"frostline training": json.dumps(held)})

    return rewrite


def _tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata)

    return rewrite


class _Hostile:
    def __reduce__(self) -> Any:
        return sys.exit, ("a pickle was executed",)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), "no such file, so nothing to resume"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "damaged"),
        (lambda path: path.write_bytes(pickle.dumps(_Hostile())), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: save_file({"a": torch.ones(1)}, path), "damaged: 'frostline training'"),
        (lambda path: save_file({"a": torch.ones(1)}, path, {"frostline training": "[" * 100_000}), "damaged"),
        (_header(lambda held: held.pop("progress")), "damaged: 'progress'"),
        (_header(lambda held: held["progress"].pop("steps")), "damaged: 'steps'"),
        (
            _header(lambda held: held["progress"].update(left=[[0, [999]]])),
            "damaged: a batch of sentences that do not exist",
        ),
        (
            _header(lambda held: held["progress"].update(left=[[7, [0]]])),
            "damaged: a batch of sentences that do not exist",
        ),
        (_header(lambda held: held["progress"].update(history=[{"number": 1}])), "damaged"),
        (_tensors(lambda t: t.pop("parameter.0")), "damaged: 'parameter.0'"),
        (_tensors(lambda t: t.pop("sampler")), "damaged: 'sampler'"),
        (_tensors(lambda t: t.update({"dropout": torch.ones(3)})), "damaged"),
        (_tensors(lambda t: t.update({"parameter.0": torch.ones(1, 1)})), "damaged: parameter.0 is not"),
        (_tensors(lambda t: t.update({"adamw.0.exp_avg_sq": torch.ones(1)})), "damaged: adamw.0.exp_avg_sq is not"),
        (_tensors(lambda t: t.pop("adamw.3.step")), "damaged: 'adamw.3.step'"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_line_that_names_it(
    toy: Any, tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    _interrupted(toy, tmp_path / "c", 3)
    damage(tmp_path / "c")
    with pytest.raises(fl.RunFolderError, match=re.escape(says)) as caught:
        _train(toy, checkpoint=tmp_path / "c", resume=True)
    assert str(tmp_path / "c") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_arguments_are_named(toy: Any) -> None:
    with pytest.raises(ValueError, match=re.escape("resume: nothing to resume from. Pass checkpoint=")):
        _train(toy, resume=True)
    with pytest.raises(ValueError, match=re.escape("patience: 0 is out of range. Pass 1 or more, or None.")):
        _train(toy, patience=0)
