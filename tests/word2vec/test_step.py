"""A step is that of word2vec written out by hand, in the kernel and its twin; its bits depend on nothing else."""

import hashlib
import math
import mmap
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import frostline as fl
from frostline.word2vec import Settings, sampling
from frostline.word2vec.step import train

from .cases import made, position, sentences

KINDS = {
    "CBOW": Settings(dim=20, min_count=1, epochs=2),
    "skip-gram": Settings(dim=20, min_count=1, epochs=2, skip_gram=True),
    "wide": Settings(dim=33, min_count=1, epochs=1, window=9, negatives=1, sample=0, alpha=0.1),
    "one dimension": Settings(dim=1, min_count=1, epochs=1, negatives=20, sample=0.1),
}
kinds = pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS.keys())


def by_hand(problem, at):
    """Train one batch in loops over plain numbers, in float64; return both tables."""
    settings, ids = problem.settings, problem.corpus.ids.tolist()
    before = [np.array(table, dtype=np.float64) for table in (problem.input, problem.output)]
    after = [table.copy() for table in before]
    rate, total, place, number, loss = problem.rate(at.words_done), 0, at.token, at.paragraph, 0.0
    while True:
        while place < len(ids) and ids[place] < 0:
            place += 1
        end = place
        while end < len(ids) and ids[end] >= 0 and end - place < min(sampling.PARAGRAPH, problem.batch_words):
            end += 1
        if end == place or total + end - place > problem.batch_words:
            return after, loss
        key = sampling.key_of(at.key, number)
        read = sampling.draws(key, problem.corpus.ids[place:end], problem.keep, settings.window, problem.draws_per_word)
        words, n = read.words.tolist(), len(read.words)
        for i in range(n):
            context = [j for j in range(max(0, i - read.widths[i]), min(n, i + read.widths[i] + 1)) if j != i]
            groups = [[j] for j in context] if settings.skip_gram else [context] if context else []
            for group in groups:
                shift = (group[0] - i + settings.window) * settings.negatives if settings.skip_gram else 0
                first = np.array([read.counters[i] + shift])
                drawn = sampling.negatives(key, first, settings.negatives, problem.alias)[0].tolist()
                hidden = sum(before[0][words[j]] for j in group) / len(group)
                for k, row in enumerate([words[i], *drawn]):
                    if k and row == words[i]:
                        continue
                    score = hidden @ before[1][row]
                    error = rate * ((k == 0) - 1 / (1 + math.exp(-score)))
                    loss += math.log1p(math.exp(-score if k == 0 else score))
                    after[1][row] += error * hidden
                    for j in group:
                        after[0][words[j]] += error * before[1][row]
        total, place, number = total + end - place, end, number + 1


@kinds
@pytest.mark.parametrize(("dtype", "within"), [("float32", 1e-6), ("float64", 1e-12)])
def test_one_batch_is_word2vec_written_out_by_hand(backend, tmp_path, settings, dtype, within):
    problem, at = made(tmp_path, replace(settings, dtype=dtype)), position()
    before = problem.input.copy()
    (input, output), loss = by_hand(problem, at)
    train(problem, at, 1, threads=1)
    assert np.abs(problem.input - input).max() <= within
    assert np.abs(problem.output - output).max() <= within
    assert at.loss == pytest.approx(loss, rel=within * 100)
    assert (problem.input != before).any(axis=1).sum() > 5
    assert (problem.input[:, settings.dim :] == 0).all()


@kinds
@pytest.mark.parametrize(("dtype", "within"), [("float32", 1e-6), ("float64", 1e-12)])
def test_after_a_paragraph_the_kernel_has_the_rows_of_its_twin(
    cpp_compiler, tmp_path, monkeypatch, settings, dtype, within
):
    text = sentences(lines=2, longest=250)
    problems, positions = [], []
    for backend in ("c++", "torch"):
        monkeypatch.setenv("FROSTLINE_BACKEND", backend)
        problems.append(made(tmp_path, replace(settings, dtype=dtype), text=text))
        positions.append(position())
        train(problems[-1], positions[-1], 1, threads=1)
    ours, twin = problems
    assert np.abs(ours.input - twin.input).max() <= within
    assert np.abs(ours.output - twin.output).max() <= within
    for name in ("token", "paragraph", "words_done", "targets"):
        assert getattr(positions[0], name) == getattr(positions[1], name) > 0


def digest(problem, at):
    return hashlib.sha256(problem.input.tobytes() + problem.output.tobytes() + bytes(at)).hexdigest()


@kinds
def test_the_bits_are_the_same_for_any_number_of_threads_and_any_size_of_steps(cpp_compiler, tmp_path, settings):
    found = set()
    for threads, words in [(1, 10**9), (2, 10**9), (3, 10**9), (4, 1), (2, 777), (13, 10**9)]:
        problem, at = made(tmp_path, settings), position()
        while not train(problem, at, words, threads):
            pass
        found.add(digest(problem, at))
    assert len(found) == 1


def test_the_bits_are_the_same_for_every_instruction_set(cpp_compiler, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); "
        "from tests.word2vec.test_step import *; "
        "p, at = made(Path(sys.argv[1]), KINDS['CBOW']), position(); train(p, at, 10**9, 2); print(digest(p, at))"
    )
    found = {}
    for flags in ("-march=native", "-mavx2", "-march=x86-64"):
        if flags == "-mavx2" and "avx2" not in Path("/proc/cpuinfo").read_text():
            continue
        compiler = tmp_path / f"c{flags}"
        compiler.write_text(f'#!/bin/bash\nexec c++ "${{@/-march=native/{flags}}}"\n')
        compiler.chmod(stat.S_IRWXU)
        environment = os.environ | {"CXX": str(compiler), "FROSTLINE_CACHE": str(tmp_path / flags)}
        command = [sys.executable, "-c", code, str(tmp_path / "text")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        found[flags] = done.stdout
    assert len(found) >= 2
    assert len(set(found.values())) == 1


@kinds
def test_frozen_rows_keep_every_bit_and_the_others_move(backend, tmp_path, settings):
    everything, learns = made(tmp_path, settings), np.arange(60, dtype=np.uint8) % 3 == 0
    count = len(everything.corpus.words)
    problem = made(tmp_path, settings, learns=learns[:count].astype(np.uint8))
    before = [problem.input.copy(), problem.output.copy()]
    at, other = position(), position()
    train(problem, at, 3000, threads=2)
    train(everything, other, 3000, threads=2)
    for table, old, free in zip(
        (problem.input, problem.output), before, (everything.input, everything.output), strict=True
    ):
        moved = (table != old).any(axis=1)
        assert not moved[~learns[:count]].any()
        assert moved[learns[:count]].sum() > 15
        assert (free != old).any(axis=1).sum() > 40  # it is the mask that holds them
    assert at.targets == other.targets > 0


def test_a_frozen_row_is_never_written(cpp_compiler, tmp_path):
    problem = made(tmp_path, KINDS["CBOW"])
    (tmp_path / "table").write_bytes(problem.input.tobytes())
    with (tmp_path / "table").open("rb") as file:  # in memory that cannot be written to: a write would kill the process
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    input = np.frombuffer(mapped, dtype=np.float32).reshape(problem.input.shape)
    frozen = replace(problem, input=input, input_learns=np.zeros(len(input), dtype=np.uint8))
    before = problem.output.copy()
    train(frozen, position(), 3000, threads=2)
    assert (problem.output != before).any(axis=1).sum() > 40


def test_the_full_softmax_is_the_cross_entropy_by_hand(tmp_path):
    settings = Settings(dim=5, min_count=1, softmax=True, window=1, sample=0, dtype="float64", epochs=1)
    problem, at = made(tmp_path, settings, text=[["a", "b", "a"]]), position()
    input, output = problem.input.copy(), problem.output.copy()
    a, b = problem.corpus.words.index("a"), problem.corpus.words.index("b")
    wanted_input, wanted_output, loss = input.copy(), output.copy(), 0.0
    for target, context in ((a, [b]), (b, [a, a]), (a, [b])):
        hidden = input[context].mean(axis=0)
        p = np.exp(output @ hidden) / np.exp(output @ hidden).sum()
        loss -= math.log(p[target])
        p[target] -= 1
        wanted_output -= 0.05 * np.outer(p, hidden)
        for word in context:
            wanted_input[word] -= 0.05 * (p @ output)
    train(problem, at, 1, threads=2)
    assert np.abs(problem.input - wanted_input).max() < 1e-12
    assert np.abs(problem.output - wanted_output).max() < 1e-12
    assert at.loss == pytest.approx(loss, rel=1e-12)


def test_an_id_without_a_row_is_an_error_and_changes_nothing(backend, tmp_path):
    problem = made(tmp_path)
    ids = problem.corpus.ids.copy()
    ids[3] = len(problem.corpus.words)
    broken = replace(problem, corpus=replace(problem.corpus, ids=ids))
    before = problem.input.copy()
    with pytest.raises(fl.FrostlineError, match="an id without a row"):
        train(broken, position(), 10**9, threads=2)
    assert np.array_equal(problem.input, before)


@pytest.mark.parametrize("words", [1, 2, 3, 5])
@pytest.mark.parametrize("skip_gram", [False, True])
def test_a_tiny_vocabulary_does_not_diverge(backend, tmp_path, words, skip_gram):
    text = [[f"w{index % words}" for index in range(300)]] * 10
    settings = Settings(dim=8, min_count=1, epochs=1, skip_gram=skip_gram, sample=0)
    problem, at = made(tmp_path, settings, text=text), position()
    train(problem, at, 10**9, threads=1)
    assert np.isfinite(problem.input).all()
    assert np.abs(problem.input).max() < 10
