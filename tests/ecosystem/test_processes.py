"""A partial table in two processes, under DDP and under FSDP2, learns what one process learns, and freezes as well."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

pytest.importorskip("transformers")
if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

SCRIPT = Path(__file__).with_name("train_llama.py")
V, ROWS = 121, [7, 119, 3]
TABLE, LEARNED, NORM = "model.embed_tokens.weight", "model.embed_tokens.weight_learned", "model.norm.weight"
KEPT = [row for row in range(V) if row not in ROWS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, launch: Callable[..., None]) -> Path:
    """What one process and two processes wrote."""
    folder = tmp_path_factory.mktemp("processes")
    launch(SCRIPT, folder)
    launch(SCRIPT, folder, processes=2)
    return folder


def _tensors(folder: Path, name: str) -> list[dict[str, Tensor]]:
    return [load_file(path) for path in sorted(folder.glob(f"{name}.*.safetensors"))]


def _about(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}.*.json"))]


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Tensor]:
    (alone,) = _tensors(folder, "one")
    return alone


@pytest.fixture(scope="module")
def untrained() -> dict[str, Tensor]:
    """The values before training, from the same script's model."""
    namespace: dict[str, Any] = {"__name__": "train_llama"}
    exec(compile(SCRIPT.read_text(), str(SCRIPT), "exec"), namespace)
    return {name: value.detach() for name, value in namespace["make_model"]().named_parameters()}


def test_one_process_moves_the_learned_rows_and_its_loss_falls(
    alone: dict[str, Tensor], untrained: dict[str, Tensor]
) -> None:
    """The guard of this file: the run that the others are compared with does learn."""
    assert (alone[LEARNED] != untrained[TABLE][ROWS]).any(dim=1).all()
    assert (alone[NORM] != untrained[NORM]).any()
    assert alone["losses"][-1] < alone["losses"][0] - 0.1


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_have_the_losses_of_one(folder: Path, alone: dict[str, Tensor], way: str) -> None:
    ranks = _tensors(folder, way)
    assert len(ranks) == 2
    for rank in ranks:
        torch.testing.assert_close(rank["losses"], alone["losses"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_learn_the_rows_of_one(folder: Path, alone: dict[str, Tensor], way: str) -> None:
    first, second = _tensors(folder, way)
    for rank in (first, second):
        torch.testing.assert_close(rank[LEARNED], alone[LEARNED], atol=1e-5, rtol=0)
        torch.testing.assert_close(rank[NORM], alone[NORM], atol=1e-5, rtol=0)
    assert torch.equal(first[LEARNED], second[LEARNED])


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_frozen_rows_keep_every_bit_on_every_process(folder: Path, untrained: dict[str, Tensor], way: str) -> None:
    others = torch.cat([value.flatten() for name, value in untrained.items() if name not in (TABLE, NORM)])
    for rank in _tensors(folder, way):
        assert torch.equal(rank[TABLE][KEPT], untrained[TABLE][KEPT])
        assert torch.equal(rank["others"], others)
        assert (rank[LEARNED] != untrained[TABLE][ROWS]).any(dim=1).all()


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_the_state_dict_has_the_plain_keys(folder: Path, untrained: dict[str, Tensor], way: str) -> None:
    for rank in _about(folder, way):
        assert rank["keys"] == [*untrained, "lm_head.weight"]


def test_under_fsdp_the_learned_rows_are_sharded(folder: Path) -> None:
    assert sorted(rank["local_rows"] for rank in _about(folder, "fsdp")) == [1, 2]


@pytest.mark.parametrize(
    ("way", "call", "says"),
    [
        ("ddp", "again", "knows only the parameters it was built with. Call train_only first."),
        ("fsdp", "again", "is sharded. Plans change before fully_shard only:"),
        ("fsdp", "merge", "is sharded. Plans change before fully_shard only:"),
    ],
)
def test_what_cannot_be_done_there_says_so_on_every_process(folder: Path, way: str, call: str, says: str) -> None:
    for rank in _about(folder, way):
        assert says in rank[call]
