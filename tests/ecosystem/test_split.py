"""Under tensor parallelism a partial weight learns what it learns in one process, and nothing as large is allocated."""

from __future__ import annotations

import json
import os
import runpy
import warnings
from collections.abc import Callable
from itertools import product
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

SCRIPT = Path(__file__).with_name("train_split.py")
ORDER = 2e-6  # sums over processes are taken in another order
KIND_TIE = [f"{kind}, {tie}" for kind, tie in product(["llama", "gpt2"], ["tied", "untied"])]
ORDERS = ["plan first", "plan after"]
LAYOUTS = ["by rows", "by columns", "along the sequence"]
WAYS = [
    *((name, f"{name}, {order}") for name in KIND_TIE for order in ORDERS),
    *((name, f"{name}, from_pretrained") for name in ("llama, tied", "llama, untied")),
    *(("llama, tied", f"llama, tied, {order}, 2 x 1") for order in ORDERS),
    *(("gpt2, untied", f"gpt2, untied, {order}, 1 x 2") for order in ORDERS),
]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """The functions of the script, for one process."""
    return runpy.run_path(str(SCRIPT), run_name="train_split")


@pytest.fixture(scope="module")
def one(script: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """What one process learns: model -> its tensors and losses."""
    found = {}
    for name in KIND_TIE:
        model = script["make"](name)
        losses = script["train"](model, script["choose"](model))
        found[name] = _values(model, losses)
    model = script["Small"]()
    plan = script["choose_small"](model)
    found["small"] = _values(model, script["train_small"](model, script["optimizer_of"](plan)))
    return found


def _values(model: Any, losses: Tensor) -> dict[str, Tensor]:
    learned = {f"learned.{name}": value for name, value in model.named_parameters() if value.requires_grad}
    values = {**model.state_dict(), **learned}
    return {name: value.detach().clone() for name, value in values.items()} | {"losses": losses}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, launch: Callable[..., str], script: dict[str, Any]) -> Path:
    """What two and three processes wrote; `one` in it is saved by this process."""
    folder = tmp_path_factory.mktemp("split")
    model = script["Small"]()
    script["train_small"](model, script["optimizer_of"](script["choose_small"](model)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this is one process
        script["save"](folder, "one", model)
    launch(SCRIPT, folder, "models", processes=2)
    launch(SCRIPT, folder, "saved", processes=3)
    return folder


def _saw(folder: Path, name: str, rank: int) -> dict[str, Tensor]:
    return load_file(folder / f"{name}.{rank}.safetensors")


def _about(folder: Path, rank: int) -> dict[str, Any]:
    return dict(json.loads((folder / f"about.{rank}.json").read_text()))


def _assert_as_one(saw: dict[str, Tensor], one: dict[str, Tensor]) -> None:
    assert saw.keys() == one.keys()
    for name, value in one.items():
        torch.testing.assert_close(saw[name], value, rtol=0, atol=ORDER)


@pytest.mark.parametrize("name", KIND_TIE)
def test_one_process_learns(one: dict[str, dict[str, Tensor]], script: dict[str, Any], name: str) -> None:
    """The guard of this file: the runs that others are compared with do learn."""
    before, after = script["make"](name).state_dict(), one[name]
    moved = {key: (after[key] != value).nonzero()[:, 0].unique().tolist() for key, value in before.items()}
    moved = {key: rows for key, rows in moved.items() if rows}
    head = script["ROWS"] if "untied" not in name else script["HEAD_ROWS"]
    table = next(key for key in before if key.endswith(("embed_tokens.weight", "wte.weight")))
    assert moved == {table: sorted(script["ROWS"]), "lm_head.weight": sorted(head)}
    assert after["losses"][-1] < after["losses"][0] - 0.1


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_two_processes_learn_what_one_learns(
    folder: Path, one: dict[str, dict[str, Tensor]], name: str, way: str
) -> None:
    for rank in (0, 1):
        _assert_as_one(_saw(folder, way, rank), one[name])


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_frozen_values_keep_every_bit_and_learned_ones_are_the_same_everywhere(
    folder: Path, script: dict[str, Any], name: str, way: str
) -> None:
    before, first, second = script["make"](name).state_dict(), _saw(folder, way, 0), _saw(folder, way, 1)
    assert all(torch.equal(first[key], second[key]) for key in first)
    learns = {"lm_head.weight": "HEAD_ROWS" if "untied" in name else "ROWS"}
    for key, value in before.items():
        table = key.endswith(("embed_tokens.weight", "wte.weight", "lm_head.weight"))
        rows = script[learns.get(key, "ROWS")] if table else []
        kept = torch.tensor([row for row in range(len(value)) if row not in rows])
        assert torch.equal(first[key][kept], value[kept])
        assert (first[key][rows] != value[rows]).any(1).all() if rows else True
    for learned in [key for key in first if key.startswith("learned.")]:  # the state dict is current
        plain = learned.removeprefix("learned.").removesuffix("_learned")
        assert torch.equal(first[learned], first[plain][script[learns.get(plain, "ROWS")]])


@pytest.mark.parametrize(("layout", "order"), list(product(LAYOUTS, ORDERS)))
def test_rows_and_entries_of_every_layout_learn_as_in_one_process(
    folder: Path, one: dict[str, dict[str, Tensor]], script: dict[str, Any], layout: str, order: str
) -> None:
    first, second = (_saw(folder, f"{layout}, {order}", rank) for rank in (0, 1))
    _assert_as_one(first, one["small"])
    assert all(torch.equal(first[key], second[key]) for key in first)
    for key, value in script["Small"]().state_dict().items():
        assert torch.equal(first[key] != value, one["small"][key] != value)  # the same elements have moved
        assert (first[key] != value).any()


def test_a_step_allocates_nothing_of_the_size_of_the_table_or_of_a_shard_of_it(folder: Path) -> None:
    for rank in (0, 1):
        largest = _about(folder, rank)["largest"]
        assert (
            largest["everything"] >= 4096 * 64 * 4
        )  # torch's own gradient of a table split by rows: the measure works
        assert largest["rows"] <= 4 * 4096 // 2 * 4  # the logits of four ids, split in two


def test_a_model_that_transformers_has_split_says_and_saves_what_one_process_would(
    folder: Path, one: dict[str, dict[str, Tensor]], script: dict[str, Any]
) -> None:
    from transformers import LlamaForCausalLM

    for name in ("llama, tied", "llama, untied"):
        model = script["make"](name)
        model.load_state_dict({key: value for key, value in one[name].items() if key in model.state_dict()})
        model.eval()
        ids = script["batches"]()[0]
        said = [_saw(folder, f"{name}, said", rank) for rank in (0, 1)]
        with torch.no_grad():
            logits = model(ids).logits
            generated = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
        for each in said:
            torch.testing.assert_close(each["logits"], logits, rtol=0, atol=ORDER)
            assert torch.equal(each["generated"], generated)
        saved = LlamaForCausalLM.from_pretrained(folder / f"{name}, saved").state_dict()
        wrote = _saw(folder, f"{name}, from_pretrained", 0)
        assert all(torch.equal(value, wrote[key]) for key, value in saved.items())


@pytest.mark.parametrize("saved", ["one", "two"])
def test_what_one_or_two_processes_saved_three_load_bit_for_bit(
    folder: Path, script: dict[str, Any], saved: str
) -> None:
    here = script["Small"]()
    script["choose_small"](here)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this is one process
        expected = script["load_all"](folder, saved, here)
        again = script["load_all"](folder, f"{saved} by three", here)
    before = script["Small"]().state_dict()
    assert all((expected[key] != value).any() for key, value in before.items())
    assert all(torch.equal(again[key], value) for key, value in expected.items())
    for rank in range(3):
        three = _saw(folder, f"{saved} in three", rank)
        assert three.keys() == expected.keys()
        assert all(torch.equal(three[key], value) for key, value in expected.items())
        for target in ("learned in three", "learned in plain"):
            learned = _saw(folder, f"{saved} {target}", rank)
            assert all(torch.equal(learned[key], expected[key]) for key in before)


@pytest.mark.parametrize("saved", ["one", "two"])
def test_save_learned_writes_the_file_of_one_process(folder: Path, saved: str) -> None:
    again, expected = (folder / f"{name}.learned.safetensors" for name in (f"{saved} again", saved))
    with safe_open(again, framework="pt") as file, safe_open(expected, framework="pt") as other:
        assert file.metadata() == other.metadata()  # the SHA-256 of what did not learn is in it
    tensors, others = load_file(again), load_file(expected)
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


@pytest.mark.parametrize(("name", "label"), [("llama, tied", "2 x 1"), ("gpt2, untied", "1 x 2")])
def test_what_fsdp_and_tensor_parallelism_saved_one_process_loads(
    folder: Path, script: dict[str, Any], name: str, label: str
) -> None:
    way = f"{name}, plan first, {label}"
    model = script["make"](name)
    script["choose"](model)
    fl.load_learned(model, folder / f"{way}.learned.safetensors")
    wrote = _saw(folder, way, 0)
    assert all(torch.equal(value, wrote[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("write", "PartialTensorError: a partial tensor that is split over processes cannot be written to here."),
        ("data", "PartialTensorError: a partial tensor that is split over processes cannot be written to here."),
        ("init", "PartialTensorError: a partial tensor that is split over processes cannot be written to here."),
        ("assign", "PartialTensorError: a partial tensor has two parts, so it cannot become a Parameter of another"),
        ("gradient", "Pass its learned part: weight.learned."),
        ("other order", "PartialTensorError: weight: the processes chose different rows, or another order of them"),
        ("carry", "StaleOptimizerError: optimizer: AdamW: the state of embed.weight is split over processes"),
        ("convert", "cannot be converted or moved. Convert the model before parallelize_module."),
        ("held", "PartialTensorError: a partial tensor was taken from its module before a later plan or a merge."),
    ],
)
def test_what_cannot_work_says_so_on_every_process_in_one_line(folder: Path, call: str, says: str) -> None:
    for rank in (0, 1):
        message = _about(folder, rank)["refusals"][call]
        assert says in message
        assert "\n" not in message
        assert _about(folder, rank)["refusals"]["convert to what it is"] == ""


def test_explain_trial_step_gradients_carry_and_merge_see_the_whole_tensor(folder: Path) -> None:
    sizes = {"embed.weight": [66, 11], "up.weight": [72, 12], "up.bias": [12, 12]}
    sizes |= {"down.weight": [60, 5], "down.bias": [5, 5]}
    entries = int((torch.rand(12, 6, generator=torch.Generator().manual_seed(5)) < 0.3).sum())
    moved = dict(zip(sizes, [4 * 6, entries, 2, 2 * 12, 2], strict=True))
    for rank in (0, 1):
        looks = _about(folder, rank)["looks"]
        assert looks["explained"] == [[name, "learns in part"] for name in sizes]
        assert looks["moved"] == {name: [moved[name], *size] for name, size in sizes.items()}
        assert looks["gradient"] == [4, 6]
        assert looks["nothing changed"]
        assert looks["carried"] == [True, True, True]
        assert looks["merged"]


@pytest.mark.skipif("FROSTLINE_SOAK" not in os.environ, reason="four processes: make soak")
def test_four_processes_split_and_shard_as_one(
    tmp_path: Path, launch: Callable[..., str], one: dict[str, dict[str, Tensor]]
) -> None:
    launch(SCRIPT, tmp_path, "four", processes=4)
    for name, order, rank in product(KIND_TIE, ORDERS, range(4)):
        saw = _saw(tmp_path, f"{name}, {order}, 2 x 2", rank)
        _assert_as_one(saw, one[name])
        assert all(torch.equal(saw[key], value) for key, value in _saw(tmp_path, f"{name}, {order}, 2 x 2", 0).items())
    for rank in range(4):
        gradients = _saw(tmp_path, "compiled", rank)
        assert gradients["eager"].any()
        assert torch.equal(gradients["compiled"], gradients["eager"])
