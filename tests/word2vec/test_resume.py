"""A run that was killed, interrupted, probed or attacked has the bits of one that was not."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import frostline as fl
from frostline import word2vec
from frostline.word2vec import Settings

from .cases import sentences

SETTINGS = Settings(dim=20, min_count=1, epochs=3)
KILLS = 20 if "FROSTLINE_SOAK" in os.environ else 3
ROOT = Path(__file__).parents[2]


def bits(run):
    return hashlib.sha256(
        run.problem.input.tobytes() + run.problem.output.tobytes() + repr(losses(run)).encode()
    ).hexdigest()


def losses(run):
    return [(epoch.number, epoch.loss) for epoch in run.history]


def left(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith((".json", ".jsonl")))


TRAIN = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from tests.word2vec.test_resume import *
run = word2vec.train("text.txt", Settings(dim=20, min_count=1, epochs=12), out="v.bin", run_folder="run",
    resume=True, threads=int(sys.argv[1]), every=2000, checkpoint_every=0.01, callback=lambda run: time.sleep(0.002))
print(bits(run))
"""


def test_a_run_that_was_killed_at_any_moment_resumes_to_the_same_bits(cpp_compiler, tmp_path):
    lines = "".join(" ".join(line) + "\n" for line in sentences(lines=3000, words=300))
    found, draw = [], random.Random(0)
    for name, kills in (("whole", 0), ("killed", KILLS)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "text.txt").write_text(lines)
        killed = 0
        while True:
            process = subprocess.Popen(
                [sys.executable, "-c", TRAIN, str(1 + killed % 3)], cwd=folder, stdout=subprocess.PIPE, text=True
            )
            if killed < kills:
                while not (folder / "run").exists() and process.poll() is None:  # its imports take most of the time
                    time.sleep(0.01)
                time.sleep(draw.random() * 0.5)
                process.send_signal(signal.SIGKILL)
                killed += 1
            printed, _ = process.communicate()
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL
        found.append((printed, hashlib.sha256((folder / "v.bin").read_bytes()).hexdigest()))
        there = [name for name in left(folder / "run") if not name.startswith(".tmp")]  # of safetensors, when killed
        assert there == ["model.safetensors", "row_changes.safetensors"]
    assert found[0] == found[1]
    assert found[0][0].strip()


def test_what_a_killed_run_left_half_written_is_removed_and_nothing_else(backend, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    half = [
        f".{name}.{'0a' * 8}.part" for name in ("word2vec.checkpoint", "text.ids", "model.safetensors", "about.json")
    ]
    kept = [".word2vec.checkpoint", f".mine.{'0a' * 8}.part", ".word2vec.checkpoint.0a.part", ".tmpfile", "notes.txt"]
    for name in (*half, *kept):
        (folder / name).write_text("half")
    (folder / ".tmpA1b2C3").mkdir()
    (folder / f".text.json.{'0a' * 8}.part").mkdir()  # cannot be unlinked
    word2vec.train(sentences(), SETTINGS, run_folder=folder)
    kept += [".tmpA1b2C3", f".text.json.{'0a' * 8}.part"]
    assert left(folder) == sorted(["model.safetensors", "row_changes.safetensors", *kept])


def test_an_interrupted_run_leaves_its_vectors_and_resumes(backend, tmp_path):
    whole = word2vec.train(sentences(), SETTINGS, every=500)
    text = tmp_path / "text.txt"
    text.write_text("".join(" ".join(line) + "\n" for line in sentences()))

    def press(run):
        if run.words_done > 5000:
            os.kill(os.getpid(), signal.SIGINT)

    options = {"out": tmp_path / "v.txt", "run_folder": tmp_path / "run", "every": 500}
    with pytest.raises(KeyboardInterrupt):
        word2vec.train(text, SETTINGS, callback=press, **options)
    halfway = fl.vectors.load(tmp_path / "v.txt", cache=False)
    assert not np.array_equal(halfway.matrix, whole.vectors.matrix)
    assert set(halfway.words) == set(whole.words)
    assert "word2vec.checkpoint" in left(tmp_path / "run")
    again = word2vec.train(text, SETTINGS, resume=True, threads=3, **options)
    assert bits(again) == bits(whole)
    assert np.array_equal(fl.vectors.load(tmp_path / "v.txt", cache=False).matrix, whole.matrix)


def test_a_checkpoint_of_other_arguments_or_a_damaged_one_is_refused(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("ice snow rain\n" * 100)

    def stop(run):
        raise RuntimeError("stop")

    folder = tmp_path / "run"
    with pytest.raises(RuntimeError, match="stop"):
        word2vec.train(text, SETTINGS, run_folder=folder, callback=stop)
    with pytest.raises(fl.RunFolderError, match="written by a run with seed 0, and here it is 1"):
        word2vec.train(text, Settings(dim=20, min_count=1, epochs=3, seed=1), run_folder=folder, resume=True)
    text.write_text("ice snow rain\n" * 101)
    with pytest.raises(fl.RunFolderError, match="written by a run with text"):
        word2vec.train(text, SETTINGS, run_folder=folder, resume=True)
    file = folder / "word2vec.checkpoint"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(fl.RunFolderError, match="damaged"):
        word2vec.train(text, SETTINGS, run_folder=folder, resume=True)


@pytest.mark.parametrize("skip_gram", [False, True])
def test_gradients_explain_and_attacks_leave_no_trace(backend, skip_gram):
    settings = Settings(dim=8, min_count=1, epochs=2, skip_gram=skip_gram)
    start = fl.vectors.Vectors(["w0", "w1", "w2"], np.random.default_rng(0).normal(size=(3, 8)))
    plain = word2vec.train(sentences(), settings, start=start)
    probed = 0

    def probe(run):
        nonlocal probed
        model, examples = run.model, run.examples()
        if len(examples.targets):
            loss = lambda: model(*examples)  # noqa: E731
            (gradient,) = fl.gradients(loss, [model.input.weight])
            delta, _ = fl.adversarial.perturb(loss, model.input, epsilon=0.5)
            assert gradient.abs().sum() > 0
            assert delta.abs().sum() > 0
            with torch.no_grad():  # what is done to the model does not reach the run
                model.output.weight.add_(1)
            probed += 1

    watched = word2vec.train(sentences(), settings, start=start, callback=probe, every=1000)
    assert probed > 5
    assert bits(watched) == bits(plain)


def test_the_loss_of_the_model_on_the_next_batch_is_what_training_then_sees(backend):
    for settings in (
        SETTINGS,
        Settings(dim=8, min_count=1, skip_gram=True),
        Settings(dim=8, min_count=1, softmax=True),
    ):
        compared = 0
        expected = None

        def check(run):
            nonlocal compared, expected
            if expected is not None and run.at.targets:
                targets, total = expected
                assert run.at.targets - targets[0] == targets[1]
                assert run.at.loss - targets[2] == pytest.approx(total, rel=1e-4)
                compared += 1
            examples = run.examples()
            count = len(examples.targets)
            total = run.model(*examples).item() * count if count else 0.0
            expected = ((run.at.targets, count, run.at.loss), total) if run.at.targets else None

        word2vec.train(sentences(lines=60), settings, callback=check, every=1)
        assert compared >= 4


def test_a_callback_may_run_in_another_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(bits(word2vec.train(sentences(), SETTINGS))))
    thread.start()
    thread.join()
    assert found == [bits(word2vec.train(sentences(), SETTINGS))]


def test_a_run_that_diverges_says_so(backend):
    with pytest.raises(fl.FrostlineError, match="alpha: training diverges at 10"):
        word2vec.train(sentences(), Settings(dim=4, min_count=1, epochs=200, alpha=10.0, sample=0))


def test_another_seed_gives_other_vectors_and_the_loss_falls():
    runs = [word2vec.train(sentences(1500), Settings(dim=16, min_count=1, epochs=6, seed=seed)) for seed in (0, 0, 1)]
    assert bits(runs[0]) == bits(runs[1]) != bits(runs[2])
    history = [epoch.loss for epoch in runs[0].history]
    assert history[-1] < history[0] - 0.3


def test_a_text_of_which_subsampling_leaves_nothing_is_an_error():
    with pytest.raises(fl.FrostlineError, match="sample: no word had a context"):
        word2vec.train([["ice"], ["snow"]] * 9, Settings(dim=4, sample=0, epochs=1))
