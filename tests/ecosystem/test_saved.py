"""Saved by any number of processes, resumed by any other: the bits of one process that was never interrupted."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import frostline as fl

pytest.importorskip("transformers")
if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

HERE = Path(__file__).parent
ROWS = [7, 119, 3]
TABLE, NORM = "model.embed_tokens.weight", "model.norm.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, launch: Callable[..., None]) -> Path:
    """What one, two and three processes saved, and how each went on."""
    folder, script = tmp_path_factory.mktemp("saved"), HERE / "train_saved.py"
    launch(script, folder, "one")
    launch(script, folder, "two", processes=2)
    launch(script, folder, "three", processes=3)
    launch(script, folder, "back")
    return folder


@pytest.fixture(scope="module")
def untrained() -> dict[str, Tensor]:
    """The values before training, from the same script's model."""
    return {name: value.detach() for name, value in _make_model().named_parameters()}


def _make_model() -> Any:
    namespace: dict[str, Any] = {"__name__": "train_llama"}
    exec(compile((HERE / "train_llama.py").read_text(), "train_llama.py", "exec"), namespace)
    return namespace["make_model"]()


def _contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return load_file(path), file.metadata()


def _assert_same_file(actual: Path, expected: Path) -> None:
    """Compare tensors, indices, dtypes, and the SHA-256 of what did not learn."""
    (tensors, metadata), (expected_tensors, expected_metadata) = _contents(actual), _contents(expected)
    assert metadata == expected_metadata
    assert list(tensors) == list(expected_tensors)
    assert all(torch.equal(tensors[name], expected_tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    "run",
    [
        "uninterrupted in two.0",
        "uninterrupted in two.1",
        "from two to two.0",
        "from two to two.1",
        "from one to two.0",
        "from one to two.1",
        "from full to two.0",
        "from full to two.1",
        "back in time in two.0",
        "back in time in two.1",
        "from one to one.0",
        "from two to one.0",
        "from three to one.0",
    ],
)
def test_resumed_is_as_if_never_interrupted(folder: Path, untrained: dict[str, Tensor], run: str) -> None:
    alone = load_file(folder / "uninterrupted in one.0.safetensors")
    saw = load_file(folder / f"{run}.safetensors")
    assert len(alone["losses"]) == 3
    for name in ("losses", "learned", "table", "norm"):
        assert torch.equal(saw[name], alone[name])
    kept = [row for row in range(len(saw["table"])) if row not in ROWS]
    assert torch.equal(saw["table"][kept], untrained[TABLE][kept])
    assert torch.equal(saw["table"][ROWS], saw["learned"])
    assert (saw["learned"] != load_file(folder / "one.learned.safetensors")[TABLE]).any(dim=1).all()


def test_the_full_state_dict_is_that_of_one_process(folder: Path, untrained: dict[str, Tensor]) -> None:
    alone, two = load_file(folder / "one.full.safetensors"), load_file(folder / "two.full.safetensors")
    assert sorted(two) == sorted(alone) == sorted([*untrained, "lm_head.weight"])
    assert all(torch.equal(alone[name], two[name]) for name in alone)
    assert (two[TABLE][ROWS] != untrained[TABLE][ROWS]).any(dim=1).all()


@pytest.mark.parametrize("saved", ["two", "three", "again"])
def test_save_learned_under_fsdp_writes_the_file_of_one_process(folder: Path, saved: str) -> None:
    _assert_same_file(folder / f"{saved}.learned.safetensors", folder / "one.learned.safetensors")


@pytest.mark.parametrize("kind", ["rows", "one row", "entries", "everything"])
def test_every_kind_of_what_learns_is_saved_as_by_one_process(folder: Path, kind: str) -> None:
    _assert_same_file(folder / f"{kind}.two.safetensors", folder / f"{kind}.one.safetensors")


def test_what_two_processes_learned_merges_into_a_plain_model(folder: Path, untrained: dict[str, Tensor]) -> None:
    model = _make_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as that of another base
        fl.load_learned(model, folder / "two.learned.safetensors")
    saved = load_file(folder / "two.full.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert (saved[NORM] != untrained[NORM]).any()


def test_a_file_that_cannot_be_written_stops_every_process(folder: Path) -> None:
    first, second = ((folder / f"failed.{rank}.txt").read_text() for rank in (0, 1))
    assert first.endswith("expected a file in a folder that exists. Make the folder, or name a file.")
    assert second.endswith("the first process could not write the file; its error says why.")


def test_learned_values_are_loaded_before_sharding(folder: Path) -> None:
    for rank in (0, 1):
        said = (folder / f"loaded.{rank}.txt").read_text()
        assert said.endswith(f": {TABLE} is sharded in the model. Load before fully_shard.")
