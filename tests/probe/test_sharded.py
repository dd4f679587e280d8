"""`trial_step` and `explain` in two processes, under DDP and under FSDP2, do not change the training."""

import json
from pathlib import Path

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

SCRIPT = Path(__file__).with_name("look_sharded.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory, launch):
    """What each of the two processes wrote."""
    folder = tmp_path_factory.mktemp("sharded")
    launch(SCRIPT, folder, processes=2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_losses_are_those_of_a_run_without_looks(found, way):
    for rank in found:
        losses = rank[f"{way} False"]["losses"]
        assert rank[f"{way} True"]["losses"] == losses
        assert losses[2] < losses[0]


def test_under_ddp_each_process_reports_whole_tensors(found):
    for rank in found:
        seen = rank["ddp True"]["seen"]
        assert seen["0.weight"] == [12, 40, [3, 4, 8]]
        assert seen["1.weight"] == [4, 20, [0, 1, 2, 3]]
        assert seen["1.bias"] == [0, 5, []]
        assert seen["2.weight"] == [5, 5, [0]]


def test_under_fsdp_each_process_reports_its_shards_by_the_row_ids_of_the_whole_tensor(found):
    first, second = (rank["fsdp True"]["seen"] for rank in found)
    assert first["0.weight"] == [8, 20, [3, 8]]  # the learned part is sharded in the caller's order: 8, 3, then 4
    assert second["0.weight"] == [4, 20, [4]]
    assert first["1.weight"] == [2, 12, [0, 1]]
    assert second["1.weight"] == [2, 8, [2, 3]]
    assert first["1.bias"][0] == second["1.bias"][0] == 0
    assert (first["2.weight"], second["2.weight"]) == ([5, 5, [0]], [0, 0, []])  # one row: one process has all of it
