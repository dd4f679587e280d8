"""Every way to train with two processes gives the bits of one process, and keeps every bit that is frozen."""

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
pytest.importorskip("accelerate")
if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

HERE = Path(__file__).parent
V, ROWS = 121, [7, 119, 3]
TABLE, LEARNED, NORM = "model.embed_tokens.weight", "model.embed_tokens.weight_learned", "model.norm.weight"
KEPT = [row for row in range(V) if row not in ROWS]

# Each way, the run of one process that does the same, and how far it may be from it: the same bits, unless sums are
# taken in another order (the norm over shards, sentences one by one, a split product) or in bfloat16.
EXACT, ORDER, BF16 = 0.0, 2e-6, 5e-3
WAYS = {
    "ddp": ("plain", EXACT),
    "ddp, static graph": ("plain", EXACT),
    "ddp, gradients as views": ("plain", EXACT),
    "ddp, compiled": ("plain", EXACT),
    "ddp, by rows": ("by rows", EXACT),
    "ddp, accumulated": ("plain", ORDER),
    "fsdp": ("plain", EXACT),
    "fsdp, not resharded": ("plain", EXACT),
    "fsdp, offloaded": ("plain", EXACT),
    "fsdp, by columns": ("plain", EXACT),
    "fsdp, replicated": ("plain", EXACT),
    "fsdp, checkpointed": ("plain", EXACT),
    "fsdp, compiled": ("plain", EXACT),
    "fsdp, made without data": ("plain", EXACT),
    "fsdp, clipped": ("clipped", ORDER),
    "fsdp, accumulated": ("plain", ORDER),
    "fsdp, mixed": ("plain", BF16),
    "fsdp, half": ("half", EXACT),
    "fsdp, half, mixed": ("half", BF16),
    "accelerate": ("half", EXACT),
    "accelerate, from one process": ("half", EXACT),
    "accelerate, checkpointed": ("half", EXACT),
    "beside tensor parallelism": ("plain", ORDER),
}
each_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, launch: Callable[..., None]) -> Path:
    """What one process and two processes wrote."""
    folder, script = tmp_path_factory.mktemp("ways"), HERE / "train_ways.py"
    launch(script, folder)
    launch(script, folder, processes=2)
    return folder


@pytest.fixture(scope="module")
def untrained() -> dict[str, Tensor]:
    """The values before training, from the same script's model."""
    namespace: dict[str, Any] = {"__name__": "train_llama"}
    exec(compile((HERE / "train_llama.py").read_text(), "train_llama.py", "exec"), namespace)
    return {name: value.detach() for name, value in namespace["make_model"]().named_parameters()}


def _saw(folder: Path, name: str, rank: int = 0) -> dict[str, Tensor]:
    return load_file(folder / f"{name}.{rank}.safetensors")


def _about(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    return dict(json.loads((folder / f"{name}.{rank}.json").read_text()))


def _near(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    return torch.equal(actual, expected) if tolerance == EXACT else torch.allclose(actual, expected, 0, tolerance)


@pytest.mark.parametrize("name", ["plain", "by rows", "clipped", "half"])
def test_the_one_process_learns(folder: Path, untrained: dict[str, Tensor], name: str) -> None:
    """The guard of this file: the runs that all others are compared with do learn."""
    alone = _saw(folder, name)
    assert (alone[LEARNED] != untrained[TABLE][ROWS].to(alone[TABLE].dtype)).any(dim=1).all()
    assert alone["losses"][-1] < alone["losses"][0] - 0.1


def test_every_way_was_run(folder: Path) -> None:
    written = {path.name.removesuffix(".1.safetensors") for path in folder.glob("*.1.safetensors")}
    assert written == set(WAYS)


SAYS = {EXACT: "the same bits", ORDER: "within 2e-6", BF16: "within 5e-3"}


def test_the_page_says_which_ways_have_the_same_bits() -> None:
    page = (HERE.parents[1] / "docs" / "many-processes.md").read_text().splitlines()
    start = page.index("| way | against one process |") + 2
    assert page[start : start + len(WAYS) + 1] == [f"| {way} | {SAYS[off]} |" for way, (_, off) in WAYS.items()] + [""]


@each_way
def test_the_losses_are_those_of_one_process(folder: Path, way: str) -> None:
    name, tolerance = WAYS[way]
    alone = _saw(folder, name)["losses"]
    assert len(alone) == 6
    for rank in (0, 1):
        assert _near(_saw(folder, way, rank)["losses"], alone, tolerance)


@each_way
def test_what_was_learned_is_what_one_process_learned(folder: Path, way: str) -> None:
    name, tolerance = WAYS[way]
    alone, first, second = _saw(folder, name), _saw(folder, way, 0), _saw(folder, way, 1)
    for tensor in (LEARNED, NORM):
        assert torch.equal(first[tensor], second[tensor])
        assert _near(first[tensor], alone[tensor], tolerance)


@each_way
def test_frozen_values_keep_every_bit_on_every_process(folder: Path, untrained: dict[str, Tensor], way: str) -> None:
    others = torch.cat([value.flatten() for name, value in untrained.items() if name not in (TABLE, NORM)])
    for rank in (0, 1):
        saw = _saw(folder, way, rank)
        dtype = saw[TABLE].dtype
        assert torch.equal(saw[TABLE][KEPT], untrained[TABLE].to(dtype)[KEPT])
        assert torch.equal(saw["others"], others.to(dtype))
        assert (saw[LEARNED] != untrained[TABLE][ROWS].to(dtype)).any(dim=1).all()


def test_clipping_over_shards_sees_the_norm_of_one_process(folder: Path) -> None:
    alone, two = (torch.tensor(_about(folder, name)["norms"]) for name in ("clipped", "fsdp, clipped"))
    assert (alone > 0.1).all()  # so that something was clipped
    torch.testing.assert_close(two, alone, rtol=1e-6, atol=0)


def test_rows_learn_in_float32_over_a_half_precision_table(folder: Path) -> None:
    for way in ("half", "fsdp, half", "fsdp, half, mixed", "accelerate"):
        saw = _saw(folder, way)
        assert saw[LEARNED].dtype is torch.float32
        assert saw[TABLE].dtype is torch.bfloat16
        assert not torch.equal(saw[LEARNED], saw[LEARNED].bfloat16().float())  # digits that the table has not


def test_accelerate_saves_the_plain_keys(folder: Path, untrained: dict[str, Tensor]) -> None:
    assert _about(folder, "accelerate, from one process")["keys"] == [*untrained, "lm_head.weight"]
