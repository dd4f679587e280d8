"""Two processes with a small model: sparse gradients, row optimizers, uneven inputs, traffic, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

SCRIPT = Path(__file__).with_name("train_small.py")
V, D, ROWS = 20, 4, [3, 17, 5]
KEPT = [row for row in range(V) if row not in ROWS]
SPARSE = ["SGD", "SparseAdam", "RowAdamW", "RowSGD", "RowAdagrad"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, launch: Callable[..., None]) -> Path:
    """What one process and two processes wrote."""
    folder = tmp_path_factory.mktemp("small")
    launch(SCRIPT, folder)
    launch(SCRIPT, folder, processes=2)
    return folder


@pytest.fixture(scope="module")
def untrained() -> dict[str, Tensor]:
    """The values before training, from the same script's model."""
    namespace: dict[str, Any] = {"__name__": "train_small"}
    exec(compile(SCRIPT.read_text(), str(SCRIPT), "exec"), namespace)
    return {name: value.detach() for name, value in namespace["Model"](False).named_parameters()}


def _saw(folder: Path, name: str, rank: int = 0) -> dict[str, Tensor]:
    return load_file(folder / f"{name}.{rank}.safetensors")


@pytest.mark.parametrize("optimizer", SPARSE)
def test_sparse_gradients_under_ddp_teach_what_they_teach_in_one_process(folder: Path, optimizer: str) -> None:
    alone = _saw(folder, f"one, {optimizer}")
    for rank in (0, 1):
        two = _saw(folder, f"ddp, {optimizer}", rank)
        assert two["sparse"].item() is True
        for name in ("losses", "table", "head"):
            # torch's SGD adds up the entries of a row in the order in which they come; the others sum them first.
            tolerance = 1e-6 if optimizer == "SGD" else 0.0
            torch.testing.assert_close(two[name], alone[name], rtol=0, atol=tolerance)


def test_a_branch_that_some_batches_leave_out_learns_as_in_one_process(
    folder: Path, untrained: dict[str, Tensor]
) -> None:
    alone, first, second = _saw(folder, "one, side"), _saw(folder, "ddp, side", 0), _saw(folder, "ddp, side", 1)
    assert (alone["side"] != untrained["side.weight"]).any()
    for name in ("losses", "table", "head", "side"):
        assert torch.equal(first[name], alone[name])
        assert torch.equal(second[name], alone[name])


def test_uneven_inputs_teach_what_they_teach_in_one_process(folder: Path) -> None:
    alone = _saw(folder, "one, uneven")
    for rank in (0, 1):
        for name in ("table", "head"):
            assert torch.equal(_saw(folder, "ddp, uneven", rank)[name], alone[name])


@pytest.mark.parametrize("way", [*SPARSE, "side", "uneven"])
def test_frozen_rows_keep_every_bit_and_learned_ones_are_the_same_everywhere(
    folder: Path, untrained: dict[str, Tensor], way: str
) -> None:
    first, second = _saw(folder, f"ddp, {way}", 0), _saw(folder, f"ddp, {way}", 1)
    assert torch.equal(first["table"], second["table"])
    assert torch.equal(first["table"][KEPT], untrained["table.weight"][KEPT])
    assert (first["table"][ROWS] != untrained["table.weight"][ROWS]).any(dim=1).all()


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_recurrent_attention_and_convolution_weights_learn_in_part_as_in_one_process(folder: Path, way: str) -> None:
    namespace: dict[str, Any] = {"__name__": "train_small"}
    exec(compile(SCRIPT.read_text(), str(SCRIPT), "exec"), namespace)
    before = namespace["Kinds"]().state_dict()
    alone = load_file(folder / "kinds.one")
    for rank in (0, 1):
        two = load_file(folder / f"kinds.{way}.{rank}")
        assert all(torch.equal(two[name], alone[name]) for name in alone)
        moved = {name: int((two[name] != before[name]).sum()) for name in alone}
        assert {name: count for name, count in moved.items() if count} == {
            "table.weight": 2 * 4,
            "recurrent.weight_ih_l0": 3 * 4,
            "recurrent.bias_hh_l0_reverse": 1,
            "recurrent.weight_hh_l0": 24 * 6,
            "attention.in_proj_weight": 36 * 12 // 3,
            "convolution.weight": 2 * 12 * 3,
            "convolution.bias": 1,
        }


def test_what_works_says_nothing(folder: Path) -> None:
    for rank in (0, 1):
        assert json.loads((folder / f"refusals.{rank}.json").read_text())["state of the model"] == ""


def test_a_table_of_fewer_rows_than_processes_learns_and_is_saved_and_loaded(folder: Path) -> None:
    for rank in (0, 1):
        assert json.loads((folder / f"refusals.{rank}.json").read_text())["short"] == [True, True, True]


def test_only_gradients_of_what_learns_are_sent(folder: Path) -> None:
    for rank in (0, 1):
        said = json.loads((folder / f"refusals.{rank}.json").read_text())
        assert said["sent"] == len(ROWS) * D + 3 * D + 3  # learned rows, head and its bias; nothing of the size of V
        assert said["buffers"] == []  # which DDP would broadcast at every step


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("sparse", "PartialTensorError: weight: fully_shard cannot reduce sparse gradients. Set sparse=False"),
        ("flattened", "PartialTensorError: weight: a partial tensor has two parts, and FullyShardedDataParallel"),
        ("plan of flattened", "PartialTensorError: model: FullyShardedDataParallel has flattened its parameters."),
        ("row optimizer", "ValueError: params: a DTensor, but it must be a tensor of this process alone;"),
        (
            "early optimizer",
            "StaleOptimizerError: optimizer: SGD holds a learned part of shape (3, 4) that fully_",
        ),
        (
            "another order, ddp",
            "PartialTensorError: weight: the processes chose different rows, or another order of them",
        ),
        ("another order, fsdp", "PartialTensorError: weight: the processes chose different rows, or another order"),
        (
            "later plan, ddp",
            "PartialTensorError: weight: its plan is newer than DistributedDataParallel, which knows only",
        ),
        ("state of the wrapper", "RuntimeError: Missing key: table.weight_learned."),  # torch's own, as docs say
        ("merge", "is sharded. Plans change before fully_shard only:"),
        ("plan of sharded", "is sharded. Plans change before fully_shard only:"),
    ],
)
def test_what_cannot_work_says_so_on_every_process_in_one_line(folder: Path, call: str, says: str) -> None:
    for rank in (0, 1):
        message = json.loads((folder / f"refusals.{rank}.json").read_text())[call]
        assert says in message
        assert "\n" not in message
