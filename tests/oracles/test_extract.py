"""The small arrays are the reference's own."""

import os
import runpy
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
SHARED = Path(os.environ.get("FROSTLINE_SHARED") or HERE.parents[1] / ".." / "shared")


@pytest.mark.parametrize("name", ["o1_entry_stop_gradients", "o2_w1w2w3", "o3_embedding_lookup", "o4_ner_bilstm"])
def test_the_committed_arrays_are_those_that_extract_takes_from_the_reference_files(name):
    source = SHARED / "oracles" / f"{name}.npz"
    if not source.exists():
        pytest.skip(f"needs the reference files; {source} is missing")
    take = runpy.run_path(str(HERE / "extract.py"))[name[:2]]
    with np.load(source) as full, np.load(HERE / "data" / f"{name}.npz") as committed:
        expected = take(full)
        assert sorted(committed.files) == sorted(expected)
        for key, value in expected.items():
            np.testing.assert_array_equal(committed[key], value, err_msg=key)


def test_the_committed_arrays_are_small():
    assert sum(path.stat().st_size for path in (HERE / "data").iterdir()) < 150_000
