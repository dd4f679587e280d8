"""Learned values are saved in kilobytes and loaded into a plain or a partial model."""

import copy
import json
import re
import subprocess
import sys
import time
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import frostline as fl
from frostline.partial import learned_format

IDS = torch.tensor([[0, 3, 3, 7], [9, 1, 3, 0]])


class Net(nn.Module):
    def __init__(self, rows=1000):
        super().__init__()
        self.embed = nn.Embedding(rows, 6)
        self.norm = nn.BatchNorm1d(6)
        self.conv = nn.Conv1d(6, 6, 1)
        self.head = nn.Linear(6, rows)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.conv(self.norm(self.embed(ids).transpose(1, 2))).mean(2))


PLANS = {
    "rows": {"embed.weight": fl.rows([3, 7, 1])},
    "entries": {"conv.weight": fl.entries(torch.arange(36).view(6, 6, 1) % 5 == 0), "head.bias": fl.rows([4, 2])},
    "everything in a head": {"norm.*": fl.everything, "head.bias": fl.everything, "embed.weight": fl.rows([9])},
}


def trained(plan):
    torch.manual_seed(0)
    model = Net()
    base = copy.deepcopy(model)
    optimizer = torch.optim.SGD(fl.train_only(model, plan).parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(IDS).pow(2).sum().backward()
        optimizer.step()
    return model, base


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("onto", ["plain", "same plan", "other plan"])
def test_what_was_learned_loads_onto_a_plain_or_a_partial_model(tmp_path, plan, onto):
    model, base = trained(PLANS[plan])
    unlike = base.eval()(IDS).detach()
    fl.save_learned(model, tmp_path / "learned.safetensors")
    if onto != "plain":
        fl.train_only(
            base, PLANS[plan] if onto == "same plan" else {"embed.weight": fl.rows([1, 500]), "conv.*": fl.everything}
        )
    fl.load_learned(base, tmp_path / "learned.safetensors", strict=onto != "other plan")
    expected, loaded = model.state_dict(), base.state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    torch.testing.assert_close(base.eval()(IDS), model.eval()(IDS), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(base(IDS), unlike)


def test_a_few_rows_are_kilobytes(tmp_path):
    model = nn.Embedding(100_000, 64)
    fl.train_only(model, {"weight": fl.rows([3, 7, 1])})
    fl.save_learned(model, tmp_path / "rows.safetensors")
    assert (tmp_path / "rows.safetensors").stat().st_size < 2000
    assert [path.name for path in tmp_path.iterdir()] == ["rows.safetensors"]


def test_float32_rows_over_a_half_table_keep_their_digits_in_the_file(tmp_path):
    model = nn.Embedding(6, 4).to(torch.bfloat16)
    base = copy.deepcopy(model)
    fl.train_only(model, {"weight": fl.rows([3], dtype=torch.float32)})
    with torch.no_grad():
        model.weight_learned.fill_(1 + 2**-12)
    fl.save_learned(model, tmp_path / "rows.safetensors")
    fl.train_only(base, {"weight": fl.rows([3, 5], dtype=torch.float32)})
    fl.load_learned(base, tmp_path / "rows.safetensors", strict=False)
    assert base.weight_learned[0].tolist() == [1 + 2**-12] * 4
    assert torch.equal(base.weight_learned[1], base.weight.frozen[5].float())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Net(999), "embed.weight has shape (1000, 6) in the file, but (999, 6) in the model."),
        (lambda: nn.Linear(2, 2), "the model has no embed.weight."),
    ],
)
def test_a_mismatch_is_a_value_error_that_names_the_parameter_and_changes_nothing(tmp_path, make, says):
    model, _ = trained(PLANS["everything in a head"])
    fl.save_learned(model, tmp_path / "learned.safetensors")
    other = make()
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        fl.load_learned(other, tmp_path / "learned.safetensors")
    assert isinstance(error.value, fl.LearnedFileError)
    assert str(tmp_path / "learned.safetensors") in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_another_base_or_another_dtype_is_a_warning(tmp_path):
    model, base = trained(PLANS["rows"])
    fl.save_learned(model, tmp_path / "rows.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fl.load_learned(copy.deepcopy(base), tmp_path / "rows.safetensors")
        fl.load_learned(model, tmp_path / "rows.safetensors")
    with torch.no_grad():
        base.embed.weight[3] += 1  # a learned row may differ
        fl.load_learned(copy.deepcopy(base), tmp_path / "rows.safetensors")
        base.embed.weight[999, 5] += 1
    with pytest.warns(UserWarning, match=r"embed.weight was learned on another base"):
        fl.load_learned(base, tmp_path / "rows.safetensors")
    with pytest.warns(UserWarning, match=r"embed.weight was learned in a float32 tensor; the model's is float64."):
        fl.load_learned(base.double(), tmp_path / "rows.safetensors")
    assert torch.equal(base.embed.weight[[3, 7, 1]].float(), model.embed.weight_learned)


def test_saving_a_model_in_which_nothing_learns_is_refused(tmp_path):
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(fl.LearnedFileError, match=re.escape("nothing in it learns. Call fl.train_only first.")):
        fl.save_learned(model, tmp_path / "nothing.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_an_error_of_one_line(tmp_path):
    model, _ = trained(PLANS["rows"])
    with pytest.raises(fl.LearnedFileError, match=re.escape("a: cannot be written: File name too long. Name another")):
        fl.save_learned(model, tmp_path / ("a" * 256))
    assert list(tmp_path.iterdir()) == []


def test_a_file_has_the_mode_that_any_new_file_has(tmp_path):
    model, _ = trained(PLANS["rows"])
    fl.save_learned(model, tmp_path / "learned.safetensors")
    (tmp_path / "new").touch()
    assert (tmp_path / "learned.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_files_that_are_something_else_are_refused(tmp_path):
    model, _ = trained(PLANS["rows"])
    path = tmp_path / "learned.safetensors"
    fl.save_learned(model, path)
    whole = path.read_bytes()
    before = copy.deepcopy(model.state_dict())
    for content, says in [
        (whole[:-10], "damaged, or not a safetensors file"),
        (b"hello", "damaged, or not a safetensors file"),
        (b"", "damaged, or not a safetensors file"),
        (whole.replace(b"[1000, 6]", b"[1000, 7]"), "its SHA-256 is another"),
        (whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:], "its SHA-256 is another"),
        (whole.replace(b"frostline-learned-2", b"frostline-learned-1"), "its SHA-256 is another"),
        (
            whole.replace(b"frostline-learned-2", b"frostline-learned-3"),
            "format 3; this version of frostline reads 1 to 2",
        ),
        (whole.replace(b"frostline-learned-2", b"frostline-learned-x"), "not a file that save_learned wrote"),
    ]:
        path.write_bytes(content)
        with pytest.raises(fl.LearnedFileError, match=says):
            fl.load_learned(model, path)
    save_file({"embed.weight": torch.zeros(1)}, path)
    with pytest.raises(fl.LearnedFileError, match="not a file that save_learned wrote"):
        fl.load_learned(model, path)
    with pytest.raises(FileNotFoundError):
        fl.load_learned(model, tmp_path / "missing.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def saved(tmp_path, plan, model=None):
    model = Net() if model is None else model
    fl.train_only(model, plan)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    fl.save_learned(model, tmp_path / "learned.safetensors")
    return model


DIFFERENCES = {
    "a row that does not learn": (
        {"embed.weight": fl.rows([3, 7])},
        {"embed.weight": fl.rows([7])},
        "embed.weight: rows 3 of the file do not learn",
    ),
    "a row that the file lacks": (
        {"embed.weight": fl.rows([3])},
        {"embed.weight": fl.rows([3, 5])},
        "embed.weight: rows 5 learn, and are not in the file",
    ),
    "other rows": (
        {"embed.weight": fl.rows([3])},
        {"embed.weight": fl.rows([5])},
        "embed.weight: rows 3 of the file do not learn; embed.weight: rows 5 learn, and are not in the file",
    ),
    "many rows": (
        {"embed.weight": fl.rows(list(range(30)))},
        {"embed.weight": fl.rows([0])},
        "embed.weight: rows 1, 2, 3, 4, 5, 6, 7, 8 and 21 more of the file do not learn",
    ),
    "an entry": (
        {"conv.weight": fl.entries(torch.arange(36).view(6, 6, 1) == 8)},
        {"conv.weight": fl.entries(torch.arange(36).view(6, 6, 1) == 9)},
        "conv.weight: entries (1, 2, 0) of the file do not learn; conv.weight: entries (1, 3, 0) learn",
    ),
    "a tensor that does not learn": (
        {"embed.weight": fl.rows([3]), "conv.bias": fl.everything},
        {"embed.weight": fl.rows([3])},
        "conv.bias: does not learn, and the file holds everything",
    ),
    "a tensor that the file lacks": (
        {"embed.weight": fl.rows([3])},
        {"embed.weight": fl.rows([3]), "conv.bias": fl.everything, "head.bias": fl.rows([1])},
        "conv.bias: learns (everything), and is not in the file; head.bias: learns (rows), and is not in the file",
    ),
    "another kind": (
        {"head.bias": fl.rows([3])},
        {"head.bias": fl.everything},
        "head.bias: everything in the plan, rows in the file",
    ),
    "nothing learns": (
        {"head.bias": fl.rows([3])},
        {"*": fl.nothing},
        "head.bias: does not learn, and the file holds 1 row",
    ),
}


@pytest.mark.parametrize(("mine", "theirs", "says"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_a_file_and_a_plan_that_differ_are_an_error_that_lists_in_what(tmp_path, mine, theirs, says):
    torch.manual_seed(0)
    model = saved(tmp_path, mine)
    torch.manual_seed(0)
    other = Net()
    fl.train_only(other, theirs)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(fl.LearnedFileError, match=re.escape(f"file and plan differ: {says}")) as error:
        fl.load_learned(other, tmp_path / "learned.safetensors")
    assert "or pass strict=False to load what the file has." in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    fl.load_learned(other, tmp_path / "learned.safetensors", strict=False)
    assert not all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())


def test_frozen_statistics_that_a_file_holds_are_an_error(tmp_path):
    plan = {"embed.weight": fl.rows([3])}
    saved(tmp_path, plan)
    other = Net()
    fl.train_only(other, plan, freeze_running_stats=True)
    with pytest.raises(fl.LearnedFileError, match=r"norm\.running_mean: frozen statistics, which the file holds"):
        fl.load_learned(other, tmp_path / "learned.safetensors")


def test_what_was_loaded_is_returned_and_prints_as_one_line(tmp_path):
    torch.manual_seed(0)
    saved(tmp_path, PLANS["entries"] | {"embed.weight": fl.rows([5]), "conv.bias": fl.everything})
    torch.manual_seed(0)
    loaded = fl.load_learned(Net(), tmp_path / "learned.safetensors")
    assert loaded.tensors == {
        "embed.weight": "1 row",
        "conv.weight": "8 entries",
        "conv.bias": "everything",
        "head.bias": "2 rows",
        **dict.fromkeys(["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"], "buffer"),
    }
    assert str(loaded).startswith("loaded embed.weight (1 row), conv.weight (8 entries), conv.bias (everything)")
    assert loaded.tokens == {}


def untied():
    torch.manual_seed(0)
    model = Net()
    model.head.weight = nn.Parameter(model.embed.weight.detach().clone())
    return model


def tied():
    torch.manual_seed(0)
    return Net()


def test_a_file_of_tied_tensors_is_loaded_under_each_of_their_names(tmp_path):
    model = saved(tmp_path, {"embed.weight": fl.rows([3, 7])}, tied())
    other = untied()
    fl.train_only(other, {"embed.weight": fl.rows([3, 7]), "head.weight": fl.rows([7, 3])})
    assert list(fl.load_learned(other, tmp_path / "learned.safetensors").tensors)[:2] == ["embed.weight", "head.weight"]
    for name in ("embed", "head"):
        assert torch.equal(other.get_submodule(name).weight, model.embed.weight)
    half = untied()
    fl.train_only(half, {"embed.weight": fl.rows([3, 7])})
    with pytest.raises(fl.LearnedFileError, match=re.escape("head.weight: does not learn, and the file holds 2 rows")):
        fl.load_learned(half, tmp_path / "learned.safetensors")
    plain = untied()
    fl.load_learned(plain, tmp_path / "learned.safetensors")
    assert torch.equal(plain.head.weight, model.head.weight)


@pytest.mark.parametrize("equal", [True, False])
def test_a_file_of_two_tensors_that_are_tied_in_the_model_must_agree(tmp_path, equal):
    model = untied()
    fl.train_only(model, {"embed.weight": fl.rows([3]), "head.weight": fl.rows([3])})
    with torch.no_grad():
        model.embed.weight[3] = 7
        model.head.weight[3] = 7 if equal else 9
    fl.save_learned(model, tmp_path / "learned.safetensors")
    for plan in (None, {"head.weight": fl.rows([3])}):
        other = tied()
        if plan:
            fl.train_only(other, plan)
        before = other.embed.weight.detach().clone()
        if equal:
            fl.load_learned(other, tmp_path / "learned.safetensors")
            assert (other.head.weight[3] == 7).all()
        else:
            says = "embed.weight and head.weight are one tensor in the model, and differ in the file."
            with pytest.raises(fl.LearnedFileError, match=re.escape(says)):
                fl.load_learned(other, tmp_path / "learned.safetensors")
            assert torch.equal(other.embed.weight, before)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("selection", [fl.rows([1, 3]), fl.entries(torch.eye(4, 2) > 0), fl.everything])
def test_complex_tensors_are_saved_and_loaded(tmp_path, dtype, selection):
    model, other = nn.Module(), nn.Module()
    values = torch.randn(4, 2, dtype=dtype)
    model.w, other.w = nn.Parameter(values.clone()), nn.Parameter(values.clone())
    for each in (model, other):
        fl.train_only(each, {"w": selection})
    with torch.no_grad():
        model.get_parameter("w" if selection is fl.everything else "w_learned").mul_(1j)
    fl.save_learned(model, tmp_path / "learned.safetensors")
    fl.load_learned(other, tmp_path / "learned.safetensors")
    assert torch.equal(other.w.detach(), model.w.detach())
    assert not torch.equal(other.w.detach(), values)
    real = nn.Module()
    real.w = nn.Parameter(torch.zeros(4, 2))
    with pytest.raises(fl.LearnedFileError, match="w is complex in the file, but float32 in the model"):
        fl.load_learned(real, tmp_path / "learned.safetensors")


def test_a_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "learned.safetensors").symlink_to(tmp_path / "far" / "target.safetensors")
    for _ in range(2):
        model = saved(tmp_path, {"embed.weight": fl.rows([3])})
        assert (tmp_path / "learned.safetensors").is_symlink()
        assert list((tmp_path / "far").iterdir()) == [tmp_path / "far" / "target.safetensors"]
    other = copy.deepcopy(model)
    fl.load_learned(other, tmp_path / "far" / "target.safetensors")
    assert torch.equal(other.embed.weight, model.embed.weight)


def rewritten(path, change):
    """Write the file again with another description of its tensors, and a digest that fits."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    about = json.loads(metadata["tensors"])
    change(about, tensors, metadata)
    metadata["tensors"] = json.dumps(about)
    if "sha256" in metadata:
        metadata["sha256"] = learned_format._digest("2" + metadata["tensors"], tensors)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("kind", "flat", "embed.weight: 'flat' is not known to this version of frostline. Update it."),
        ("kind", 7, "embed.weight: '7' is not known"),
        ("after", "0123", "embed.weight: 'after' is not known to this version of frostline. Update it."),
        ("shape", [1000, 7], "embed.weight: its values and indices in the file do not match its shape (1000, 7)."),
        ("shape", [7, 6], "do not match its shape (7, 6)."),
        ("dtype", "complex64", "embed.weight: its values in the file do not match its dtype complex64."),
        ("tokens", {"<tool>": 4}, "embed.weight: its tokens in the file do not match its rows."),
        ("tokens", {"<a>": 3, "<b>": 3}, "embed.weight: its tokens in the file do not match its rows."),
        ("tokens", [1], "damaged"),
        ("shape", "abc", "damaged, or not a safetensors file"),
    ],
)
def test_what_a_later_version_may_say_is_refused(tmp_path, field, value, says):
    saved(tmp_path, {"embed.weight": fl.rows([3, 7])})
    path = tmp_path / "learned.safetensors"
    rewritten(path, lambda about, tensors, metadata: about["embed.weight"].update({field: value}))
    with pytest.raises(fl.LearnedFileError, match=re.escape(says)) as error:
        fl.load_learned(Net(), path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_file_of_the_first_format_is_read(tmp_path):
    torch.manual_seed(0)
    model = saved(tmp_path, {"embed.weight": fl.rows([3, 7])})

    def as_before(about, tensors, metadata):
        del metadata["sha256"], about["embed.weight"]["tied"]
        metadata["format"] = "frostline-learned-1"
        tensors["embed.weight:places"] = tensors.pop("embed.weight:indices")

    rewritten(tmp_path / "learned.safetensors", as_before)
    torch.manual_seed(0)
    other = Net()
    fl.load_learned(other, tmp_path / "learned.safetensors")
    assert torch.equal(other.embed.weight, model.embed.weight.detach())


KILLED = """
import sys, torch
import frostline as fl
model = torch.nn.Embedding(40_000, 32)
fl.train_only(model, {"weight": fl.rows(list(range(20_000)))})
print("ready", flush=True)
for turn in range(10_000):
    with torch.no_grad():
        model.weight_learned.fill_(turn)
    fl.save_learned(model, sys.argv[1])
"""


def test_a_file_whose_writer_is_killed_is_the_old_one_or_the_new_one(tmp_path):
    path = tmp_path / "learned.safetensors"
    for turn in range(2):
        with subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout.readline() == "ready\n"
            time.sleep(0.4 + turn * 0.03)
            writer.kill()
        values = learned_format.read(path)["weight"].values
        assert values.shape == (20_000, 32)
        assert (values == values[0, 0]).all()
