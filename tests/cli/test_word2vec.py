"""`frostline word2vec train` and `frostline vectors evaluate`, as typed in a shell."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import frostline as fl
from frostline.cli import main


@pytest.fixture(autouse=True)
def in_a_folder_with_a_text(tmp_path, monkeypatch):
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FROSTLINE_BACKEND", "torch")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the king and the queen\nthe sea and the river\n" * 20)


def output_of(capfd, *arguments):
    code = main(list(arguments))
    out, err = capfd.readouterr()
    return code, out, err


def test_train_prints_epochs_and_neighbours_and_writes_the_vectors(capfd, tmp_path):
    command = ["word2vec", "train", "text.txt", "--out", "v.bin", "--dim", "4", "--epochs", "2", "--sample", "0"]
    code, out, err = output_of(capfd, *command, "--neighbours-of", "king,sea")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("epoch 1/2  loss ")
    assert lines[1].startswith("  king: ")
    assert lines[2].startswith("  sea: ")
    assert lines[-2] == "audit: 0 of 0 frozen values moved; 12 of 12 rows that learn moved"
    assert lines[-1] == "6 words, dimension 4, in v.bin; v.bin.run for frostline report"
    assert fl.vectors.load("v.bin").dimension == 4
    assert sorted(path.name for path in Path("v.bin.run").iterdir()) == [
        "about.json",
        "audit.json",
        "curves.jsonl",
        "model.safetensors",
        "row_changes.safetensors",
    ]
    code, out, _ = output_of(
        capfd, *command[:4], "more.txt", *command[5:], "--start-from", "v.bin.run", "--learn", "all"
    )
    assert code == 0
    assert "audit: 0 of 0 frozen values moved; 12 of 12 rows that learn moved" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no.txt", "--out", "v.bin"], "no.txt: cannot be opened: No such file or directory. Check the path."),
        (["text.txt", "--out", "v.xyz"], "v.xyz: its name ends in none of"),
        (["text.txt", "--out", "v.bin", "--min-count", "99"], "none of its 6 words occurs 99 times"),
        (["text.txt", "--out", "v.bin", "--dim", "0"], "--dim: 0 is out of range. Pass a whole number from 1 to"),
        (["text.txt", "--out", "v.bin", "--min-count", "0"], "--min-count: 0 is out of range"),
        (["text.txt", "--out", "v.bin", "--alpha", "nan"], "--alpha: nan is out of range"),
        (["text.txt", "--out", "v.bin", "--threads", "0"], "--threads: 0 is out of range"),
        (["text.txt", "--out", "v.bin", "--start-from", "no"], "no: cannot be opened"),
        (["text.txt", "--out", "v.bin", "--neighbours-of", "lava"], "--neighbours-of: 'lava' is not among the 6 words"),
    ],
)
def test_bad_input_is_one_line_and_writes_no_vectors_and_no_run(capfd, tmp_path, arguments, says):
    code, _, err = output_of(capfd, "word2vec", "train", *arguments)
    assert code == 2
    assert err.count("\n") == 1
    assert says in err
    assert not (tmp_path / "v.bin").exists()
    assert not (tmp_path / "v.bin.run").exists() or "--neighbours-of" in arguments  # that run can be resumed


def test_ctrl_c_leaves_vectors_and_a_run_that_resumes(tmp_path):
    command = [sys.executable, "-m", "frostline", "word2vec", "train", "text.txt", "--out", "v.txt", "--epochs", "400"]
    command += ["--dim", "4", "--sample", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert first.startswith("epoch 1/400")
    assert process.returncode == 130
    assert out.endswith("stopped: the vectors so far are in v.txt; to continue, pass the same arguments and --resume\n")
    assert err == "frostline: interrupted\n"
    assert len(fl.vectors.load("v.txt").words) == 6
    began = time.monotonic()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=True, timeout=200)
    assert "epoch 400/400" in done.stdout
    assert "epoch 1/400" not in done.stdout, time.monotonic() - began


def test_training_itself_does_not_load_torch(monkeypatch):
    code = (
        "import sys; from frostline.word2vec import Settings, train; "
        "train('text.txt', Settings(dim=4, sample=0), out='v.bin'); print('torch' in sys.modules)"
    )
    environment = os.environ | {"FROSTLINE_BACKEND": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout in ("False\n", "True\n" if fl.optim.backend().name == "torch" else "False\n")


def test_evaluate_prints_a_table_of_several_files_and_their_coverage(capfd, tmp_path):
    (tmp_path / "a.txt").write_text("ice 1 0\nsnow 0.9 0.1\nfire 0 1\nlava 0.1 0.8\n")
    (tmp_path / "b.txt").write_text("ice 1 0\nsnow 0 1\nfire 0.9 0.1\n")
    (tmp_path / "pairs").write_text("ice snow 9\nfire lava 8\nice fire 1\n")
    (tmp_path / "questions").write_text(": heat\nice snow fire lava\n")
    command = ["vectors", "evaluate", "a.txt", "b.txt", "--similarity", "pairs", "--analogies", "questions"]
    assert output_of(capfd, *command)[1].splitlines() == [
        "vectors  evaluated on  measure      score  found           of",
        "-------------------------------------------------------------",
        "a.txt    pairs         Spearman    1.0000      3      3 pairs",
        "a.txt    questions     correct   100.00 %      1  1 questions",
        "b.txt    pairs         Spearman   -1.0000      2      3 pairs",
        "b.txt    questions     correct      nan %      0  1 questions",
    ]
    found = json.loads(output_of(capfd, *command, "--json")[1])
    assert found["a.txt"]["questions"]["accuracy"] == 1
    assert found["b.txt"]["questions"]["accuracy"] is None
    code, _, err = output_of(capfd, "vectors", "evaluate", "a.txt")
    assert (code, err) == (2, "frostline: --similarity, --analogies: neither is given. Pass a file to evaluate with.\n")
