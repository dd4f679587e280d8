"""Learned values are saved in kilobytes and loaded into a plain or a partial model."""

import copy
import re
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import frostline as fl

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
    fl.load_learned(base, tmp_path / "learned.safetensors")
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
    fl.load_learned(base, tmp_path / "rows.safetensors")
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
        (whole.replace(b"[1000, 6]", b"[1000, 7]"), "do not match its shape"),
        (whole.replace(b'\\"kind\\"', b'\\"kinx\\"'), "damaged"),
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
