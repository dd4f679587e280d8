"""Memory that a mapped file took goes back, and nothing that somebody wrote goes with it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from frostline import vectors
from frostline.vectors.table import give_back


def _file_mb() -> float:
    """Memory of this process that is pages of files, in MB."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs Linux's /proc")
    found = re.search(r"RssFile:\s+(\d+)", status.read_text())
    assert found is not None
    return int(found.group(1)) / 1024


def test_what_reading_mapped_vectors_took_goes_back_and_they_read_the_same_again(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).normal(size=(40_000, 100)).astype(np.float32)  # 15 MB
    vectors.save(vectors.Vectors([f"w{number}" for number in range(40_000)], matrix), tmp_path / "v.safetensors")
    loaded = vectors.load(tmp_path / "v.safetensors")
    before = _file_mb()
    assert np.array_equal(loaded.matrix, matrix)
    read = _file_mb()
    give_back(loaded.matrix[3:])
    assert read - before > 12
    assert _file_mb() - before < 3
    assert np.array_equal(loaded.matrix, matrix)
    assert loaded.words[39_999] == "w39999"


@pytest.mark.parametrize("mode", ["c", "r+"])
def test_what_was_written_to_an_array_stays(tmp_path: Path, mode: str) -> None:
    np.zeros(50_000, dtype=np.float32).tofile(tmp_path / "numbers")
    mapped = np.memmap(tmp_path / "numbers", dtype=np.float32, mode=mode)  # type: ignore[call-overload]
    mapped[:] = 7.0
    locked = np.asarray(mapped)
    locked.flags.writeable = False
    for array in (mapped, locked, mapped[5:]):
        give_back(array)
    assert (mapped == 7.0).all()
    plain = np.ones(9, dtype=np.float32)
    give_back(plain)
    assert (plain == 1.0).all()
