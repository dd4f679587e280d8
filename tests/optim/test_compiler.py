"""The kernel is compiled once, when it is first needed, and a file that others could have written is not loaded."""

import os
import pwd
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from frostline.optim import compiler, kernel

needs_compiler = pytest.mark.usefixtures("cpp_compiler")


def in_a_process(code, **environment):
    """Return what a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={key: value for key, value in os.environ.items() if not key.startswith("FROSTLINE")} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


ASK = "import frostline as fl; print(fl.optim.backend().name)"


@needs_compiler
def test_nothing_is_compiled_before_a_step_that_can_use_it(tmp_path):
    code = """
import os, torch, frostline as fl
def compiled():
    return os.path.exists(os.environ["FROSTLINE_CACHE"] + "/kernel")
optimizer = fl.optim.RowSGD([weight := torch.nn.Parameter(torch.ones(2, 1, dtype=torch.bfloat16))])
weight.grad = torch.ones_like(weight)
optimizer.step()
print(compiled())
optimizer = fl.optim.RowSGD([weight := torch.nn.Parameter(torch.ones(2, 1))])
weight.grad = torch.ones_like(weight)
print(compiled())
optimizer.step()
print(compiled())
"""
    assert in_a_process(code, FROSTLINE_CACHE=str(tmp_path)).split() == ["False", "False", "True"]


@needs_compiler
def test_processes_that_compile_at_the_same_time_leave_one_complete_file(tmp_path):
    with ThreadPoolExecutor(3) as pool:
        backends = list(pool.map(lambda _: in_a_process(ASK, FROSTLINE_CACHE=str(tmp_path)), range(3)))
    assert backends == ["c++"] * 3
    assert [path.suffix for path in (tmp_path / "kernel").iterdir()] == [".so"]


@needs_compiler
def test_the_kernel_is_built_once_and_again_if_its_file_is_damaged(tmp_path):
    for damage in (None, b"", b"\x7fELF and then nothing"):
        assert in_a_process(ASK, FROSTLINE_CACHE=str(tmp_path)) == "c++"
        (file,) = (tmp_path / "kernel").iterdir()
        built = file.stat().st_mtime_ns
        assert in_a_process(ASK, FROSTLINE_CACHE=str(tmp_path)) == "c++"
        assert file.stat().st_mtime_ns == built
        if damage is not None:
            file.write_bytes(damage)
            assert in_a_process(ASK, FROSTLINE_CACHE=str(tmp_path)) == "c++"
            assert file.stat().st_size > 10_000


@needs_compiler
def test_if_the_cache_is_not_writable_the_kernel_is_compiled_for_this_process_alone(fresh_kernel):
    fresh_kernel.parent.write_text("a file where the folder should be")
    assert kernel.backend().name == "c++"
    assert kernel.backend().why.endswith(f"for this process: cannot use {fresh_kernel}")


@needs_compiler
def test_a_file_that_others_could_have_written_is_not_loaded(fresh_kernel):
    assert kernel.backend().why.endswith(f"kept in {fresh_kernel}")
    (file,) = fresh_kernel.iterdir()
    file.chmod(0o777)
    before = file.stat().st_ino
    kernel._load_once.cache_clear()
    assert kernel.backend().name == "c++"
    assert file.stat().st_ino != before
    fresh_kernel.chmod(0o777)
    kernel._load_once.cache_clear()
    assert kernel.backend().why.endswith(f"for this process: cannot use {fresh_kernel}")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("/nowhere/c++", r"the compiler /nowhere/c\+\+ cannot be run: .*No such file"),
        ("{folder}/fails", "the compiler .*/fails failed: this is the first line$"),
        ("{folder}/lies", "the compiled kernel does not load: "),
    ],
)
def test_a_compiler_that_fails_is_named_with_its_message(fresh_kernel, monkeypatch, tmp_path, command, says):
    scripts = {
        "fails": "echo this is the first line >&2; echo this the second >&2; exit 1",
        "lies": 'while [ $# -gt 0 ]; do [ "$1" = -o ] && echo nonsense > "$2"; shift; done',
    }
    for name, script in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("CXX", command.format(folder=tmp_path))
    assert kernel.backend().name == "torch"
    assert re.search(says, kernel.backend().why)


def test_without_its_source_plain_torch_is_used_and_the_reason_is_given(fresh_kernel, monkeypatch, tmp_path):
    monkeypatch.setattr(compiler, "SOURCE", tmp_path / "kernel.cpp")
    assert kernel.backend() == ("torch", "kernel.cpp was not installed with frostline")


def test_the_source_of_the_kernel_is_installed_with_the_package():
    assert compiler.SOURCE.is_file()


@needs_compiler
def test_a_truncated_file_never_ends_a_process(tmp_path):
    assert in_a_process(ASK, FROSTLINE_CACHE=str(tmp_path)) == "c++"
    (file,) = (tmp_path / "kernel").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:31_000])
    code = ASK.replace("import", "import torch,", 1)  # with torch's libraries loaded it was a bus error
    assert in_a_process(code, FROSTLINE_CACHE=str(tmp_path)) == "c++"
    assert [path.read_bytes() for path in (tmp_path / "kernel").iterdir()] == [whole]


@needs_compiler
def test_a_file_that_is_cut_off_or_in_which_a_bit_is_another_is_not_loaded(fresh_kernel):
    kernel.backend()
    (file,) = fresh_kernel.iterdir()
    whole = file.read_bytes()
    file.unlink()  # it is loaded: written over, it would end this process
    cut = [whole[:size] + bytes(zeros) for size in (0, 1, 4096, 31_000, len(whole) - 1) for zeros in (0, 9_000)]
    flipped = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole), len(whole) // 5)]
    for damaged in [*cut, *flipped]:
        file.write_bytes(damaged)
        key = file.stem.partition("-")[0]
        assert compiler._find(fresh_kernel, key) is None
        assert not file.exists()


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "setuid") or os.getuid() != 0, reason="needs CUDA or root: becomes another user")
def test_without_a_home_folder_and_an_entry_among_the_users_a_step_works():
    code = """
import os, torch, frostline as fl
import frostline.optim
table = torch.nn.Embedding(5, 2, sparse=True)
optimizer = fl.optim.RowAdamW(table.parameters())
table(torch.tensor([1])).sum().backward()
before = table.weight.detach().clone()
for name in ("HOME", "XDG_CACHE_HOME", "FROSTLINE_CACHE"):
    os.environ.pop(name, None)
os.setuid(54321)
optimizer.step()
print((table.weight != before).any(1).nonzero().flatten().tolist(), fl.optim.backend().name)
"""
    assert in_a_process(code) in ("[1] c++", "[1] torch")  # the compiler may be out of reach of that user


def test_without_a_home_folder_the_kernel_is_compiled_for_this_process(monkeypatch, fresh_kernel):
    def unknown(uid):
        raise KeyError(uid)

    for name in ("HOME", "XDG_CACHE_HOME", "FROSTLINE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    why = kernel.backend().why
    assert "no home folder for a cache; set FROSTLINE_CACHE" in why or "no C++ compiler" in why
