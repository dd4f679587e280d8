"""Training holds the table once: the vectors stay in their file, and the initial table is not a copy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Training on a small table first brings in all that does not grow with a table, such as torch's own modules.
SCRIPT = """
import re, sys
import numpy as np
from frostline import tagger, vectors
from frostline.tagger.training.run_folder import write_run_folder

def megabytes(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read()).group(1)) / 1024

def train(rows, width):
    path = f"{sys.argv[1]}/{rows}.safetensors"
    words = [f"word{i}" for i in range(rows)]
    vectors.save(vectors.Vectors(words, np.random.default_rng(0).random((rows, width), dtype=np.float32)), path)
    del words
    text = 50 * [(["word1", "meets", "word2"], ["B-a", "O", "B-b"])]
    before = megabytes("VmRSS")
    run = tagger.train(text, text, vectors.load(path), epochs=2, checkpoint=f"{sys.argv[1]}/{rows}", checkpoint_every=0)
    run.tagger.save(f"{sys.argv[1]}/tagger{rows}")
    write_run_folder(f"{sys.argv[1]}/tagger{rows}", run, title="a run", facts={})
    assert run.audit.frozen_compared == (rows + 1) * width and run.audit.learned_rows_moved == 2
    return before

train(1_000, 200)
print(train(100_000, 200), megabytes("VmHWM"))
"""
TABLE = 100_000 * 200 * 4 / 2**20  # in MB


def test_the_peak_memory_of_a_training_grows_by_one_table_and_its_words(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux's /proc")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    before, peak = map(float, done.stdout.split())
    assert 0.9 * TABLE < peak - before < 1.3 * TABLE
