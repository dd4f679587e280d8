"""`frostline diff` and `frostline digest`: what they print, and their exit codes."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import frostline as fl
from frostline.changes.progress import Progress
from frostline.cli import main


@pytest.fixture
def files(tmp_path):
    torch.manual_seed(0)
    a = {
        "embed.weight": torch.randn(6, 3),
        "layers.0.up.weight": torch.randn(4, 3).bfloat16(),
        "layers.0.up.bias": torch.zeros(4),
        "layers.1.up.weight": torch.randn(4, 3).bfloat16(),
        "scale": torch.tensor(2.0),
    }
    b = {name: tensor.clone() for name, tensor in a.items()}
    b["embed.weight"][[1, 4]] += 1.0
    b["layers.0.up.bias"][2] = -0.0
    for name, state in {"a": a, "b": b}.items():
        (tmp_path / name).mkdir()
        save_file(state, tmp_path / name / "model.safetensors")
    return a, b, tmp_path


def test_the_same_files_are_the_same_and_exit_0(files, capsys):
    _, _, folder = files
    assert main(["diff", str(folder / "a"), str(folder / "a" / "model.safetensors")]) == 0
    assert capsys.readouterr().out == "the same: 5 tensors, every bit\n"


def test_what_differs_is_printed_by_block_and_tensor_and_exits_1(files, capsys):
    _, _, folder = files
    assert main(["diff", str(folder / "a"), str(folder / "b"), "--rows"]) == 1
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "embed.weight 6 of 18 2 of 6 1" in lines
    assert "layers.0.up.bias 1 of 4 1 of 4 0" in lines  # -0.0 is another bit, at no distance
    assert "layers.0 1 of 2 1 of 16 0" in lines
    assert "layers.1 0 of 1 0 of 12" in lines
    assert "embed.weight: rows 1, 4" in lines
    assert lines[-1] == "2 differ, 3 tensors are the same, every bit"


def test_json_has_entries_rows_and_numel_of_every_tensor(files, capsys):
    a, _, folder = files
    assert main(["diff", str(folder / "a"), str(folder / "b"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["tensors"].keys() == a.keys()
    embed = found["tensors"]["embed.weight"]
    assert (embed["entries"], embed["rows"], embed["numel"], embed["num_rows"]) == (6, 2, 18, 6)
    assert math.isclose(embed["largest"], 1.0, rel_tol=1e-5)
    assert (found["same"], found["only_in_a"], found["only_in_b"], found["retyped"]) == (False, [], [], {})


@pytest.mark.parametrize(
    ("patterns", "code"),
    [
        (["embed.*", "*.bias"], 0),
        (["embed.*"], 1),
        (["*"], 0),
        (["head.*"], 1),
    ],
)
def test_only_exits_0_if_nothing_else_differs(files, capsys, patterns, code):
    _, _, folder = files
    only = [argument for pattern in patterns for argument in ("--only", pattern)]
    assert main(["diff", str(folder / "a"), str(folder / "b"), *only]) == code
    assert ("is not named by --only" in capsys.readouterr().out) == bool(code)


def test_names_dtypes_shapes_and_ties_that_differ_are_said(files, capsys):
    a, _, folder = files
    other = dict(a)
    other["embed.weight"] = torch.randn(7, 3)
    other["scale"] = other["scale"].half()
    other["new"] = torch.ones(1)
    other["twin"] = other["layers.1.up.weight"]
    del other["layers.0.up.bias"]
    torch.save(other, folder / "other.pt")
    assert main(["diff", str(folder / "a"), str(folder / "other.pt")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "embed.weight: float32 [6, 3] in A, float32 [7, 3] in B" in lines
    assert "scale: float32 [] in A, float16 [] in B" in lines
    assert "layers.0.up.bias: only in A" in lines
    assert "new: only in B" in lines
    apart = {name: tensor.clone() for name, tensor in other.items()}
    torch.save(apart, folder / "apart.pt")
    assert main(["diff", str(folder / "other.pt"), str(folder / "apart.pt")]) == 1
    assert "layers.1.up.weight and twin are tied only in A" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["tokenizer.json", "vocab.json", "vocab.txt", "words.txt"])
def test_rows_are_named_by_the_tokens_that_lie_beside_a_file(files, capsys, kind):
    _, _, folder = files
    words = ["the", "frost", "line", "is", "cold", "<new>"]
    ids = {word: number for number, word in enumerate(words)}
    added = [{"id": 5, "content": "<new>"}]
    content = {
        "tokenizer.json": json.dumps({"model": {"vocab": dict([*ids.items()][:5])}, "added_tokens": added}),
        "vocab.json": json.dumps(ids),
    }.get(kind, "\n".join(words))
    (folder / "b" / kind).write_text(content)
    assert main(["diff", str(folder / "a"), str(folder / "b"), "--rows"]) == 1
    assert "embed.weight: rows 1 'frost', 4 'cold'" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["missing", "empty.safetensors"])
def test_what_cannot_be_compared_exits_2_with_one_line(files, capsys, name):
    _, _, folder = files
    (folder / "empty.safetensors").touch()
    assert main(["diff", str(folder / "a"), str(folder / name)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("frostline: ")
    assert printed.err.count("\n") == 1
    assert name in printed.err


def test_digest_prints_what_fl_digest_returns(files, capsys):
    _, _, folder = files
    assert main(["digest", str(folder / "a"), str(folder / "b"), "--tensors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{fl.digest(folder / 'a')}  {folder / 'a'}"
    assert len(lines) == 12
    assert main(["digest", str(folder / "a"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {str(folder / "a"): {"digest": fl.digest(folder / "a")}}


def test_a_file_larger_than_the_memory_it_may_take_is_compared(tmp_path):
    """In a process of its own: what it holds at most grows by less than one of the tensors."""
    state = {f"t{number}": torch.full((3 << 22,), float(number)) for number in range(4)}  # 48 MiB each
    for name in "ab":
        state["t3"][7] += 1
        save_file(state, tmp_path / f"{name}.safetensors")
    script = (
        "import resource, sys, torch, numpy\n"
        "from frostline.changes import diff, digest\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "assert diff(sys.argv[1], sys.argv[2]).changed == ['t3'] and digest(sys.argv[1]) != digest(sys.argv[2])\n"
        "print((peak() - before) / 1024)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    if sys.platform == "linux":
        assert float(done.stdout) < 2 * 48  # one tensor of each file; all of both are 384


def test_progress_shows_rate_and_time_left_once_it_takes_long(monkeypatch, capsys):
    from frostline.changes import progress

    clock = iter([0.0, 0.5, 31.0, 32.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Progress("compared") as shown:
        shown(10**9, 10**11)
        shown(31 * 10**9, 10**11)
        shown(32 * 10**9, 10**11)
    assert capsys.readouterr().err == "compared 31.00 of 100.00 GB, 1.00 GB/s, 69 s left\n"
