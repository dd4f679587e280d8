"""A memory-mapped table is shared, never copied, never written to."""

import copy
import io
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import frostline as fl

IDS = torch.tensor([[0, 3, 3, 7], [9, 1, 3, 0]])


@pytest.fixture
def table():
    return torch.randn(12, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["safetensors", "raw", "half"])
def file(request, tmp_path, table):
    """A file of the table and how to open it."""
    if request.param == "raw":
        (tmp_path / "table.bin").write_bytes(table.numpy().tobytes())
        return tmp_path / "table.bin", {"shape": (12, 6)}
    values = table.half() if request.param == "half" else table
    save_file({"bias": torch.zeros(3), "table": values}, tmp_path / "table.safetensors")
    return tmp_path / "table.safetensors", {}


def test_only_named_rows_learn_and_the_file_keeps_every_byte(file):
    path, how = file
    before = path.read_bytes()
    embed = fl.mapped_embedding(path, **how)
    model = nn.Sequential(embed, nn.Linear(6, 2))
    assert [name for name, _ in model.named_parameters()] == ["1.weight", "1.bias"]
    start = embed.weight.clone()
    assert torch.equal(model[0](IDS), start[IDS])

    plan = fl.train_only(model, {"*": fl.everything, "0.weight": fl.rows([3, 9], dtype=torch.float32)})
    assert [name for name, _ in model.named_parameters()] == ["0.weight_learned", "1.weight", "1.bias"]
    assert plan.learned == 12 + 14
    optimizer = torch.optim.AdamW(plan.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(IDS).float().pow(2).sum().backward() if start.dtype == torch.float32 else embed(
            IDS
        ).float().sum().backward()
        optimizer.step()
    after = embed.weight.detach().clone()
    assert (after != start).any(1).nonzero().flatten().tolist() == [3, 9]
    assert path.read_bytes() == before


def test_its_state_dict_is_full_and_loads_into_a_plain_and_a_mapped_model(file):
    path, how = file
    embed = fl.mapped_embedding(path, **how)
    assert list(embed.state_dict()) == ["weight"]
    fl.train_only(embed, {"weight": fl.rows([3, 9])})
    with torch.no_grad():
        embed.weight_learned.add_(1)
    state = embed.state_dict()
    assert list(state) == ["weight"]
    plain = nn.Embedding(12, 6, dtype=embed.weight.dtype)
    plain.load_state_dict(state)
    assert torch.equal(plain(IDS), embed(IDS))

    other = fl.mapped_embedding(path, **how)
    with pytest.raises(RuntimeError, match="its frozen rows differ from the mapped file, which is never written to"):
        other.load_state_dict(state)
    fl.train_only(other, {"weight": fl.rows([9, 3])})
    other.load_state_dict(state)
    assert torch.equal(other(IDS), embed(IDS))
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({})


def test_what_was_learned_is_saved_and_loaded(file, tmp_path):
    path, how = file
    embed = fl.mapped_embedding(path, **how)
    fl.train_only(embed, {"weight": fl.rows([3, 9])})
    with torch.no_grad():
        embed.weight_learned.add_(1)
    fl.save_learned(embed, tmp_path / "rows.safetensors")
    other = fl.mapped_embedding(path, **how)
    with pytest.raises(
        fl.LearnedFileError, match=r"is mapped and never written to. Call train_only with the file's rows"
    ):
        fl.load_learned(other, tmp_path / "rows.safetensors")
    fl.train_only(other, {"weight": fl.rows([1, 3, 9])})
    fl.load_learned(other, tmp_path / "rows.safetensors", strict=False)
    assert torch.equal(other(IDS), embed(IDS))


def test_copies_and_pickles_map_the_same_file(file):
    path, how = file
    embed = fl.mapped_embedding(path, **how)
    fl.train_only(embed, {"weight": fl.rows([3, 9])})
    saved = io.BytesIO()
    torch.save(embed, saved)
    saved.seek(0)
    for twin in (copy.deepcopy(embed), torch.load(saved, weights_only=False)):
        assert torch.equal(twin(IDS), embed(IDS))
        with torch.no_grad():
            twin.weight_learned.add_(1)
        assert not torch.equal(twin(IDS), embed(IDS))


def test_a_new_plan_keeps_what_learned_and_refuses_to_lose_it(file):
    path, how = file
    embed = fl.mapped_embedding(path, **how)
    fl.train_only(embed, {"weight": fl.rows([3, 9])})
    with torch.no_grad():
        embed.weight_learned.add_(1)
    values = embed.weight.detach().clone()
    fl.train_only(embed, {"weight": fl.rows([9, 1, 3])})
    assert torch.equal(embed.weight.detach().clone(), values)
    for forget in (lambda: fl.train_only(embed, {"weight": fl.rows([9])}), lambda: fl.merge(embed)):
        with pytest.raises(fl.PartialTensorError, match="learned rows cannot be written back to the read-only file"):
            forget()
    assert torch.equal(embed.weight.detach().clone(), values)


@pytest.mark.parametrize("sparse", [False, True])
def test_dense_and_sparse_gradients_compiled_and_eager(file, sparse):
    path, how = file
    embed = fl.mapped_embedding(path, sparse=sparse, **how)
    fl.train_only(embed, {"weight": fl.rows([3, 9], dtype=torch.float32)})
    embed(IDS).float().sum().backward()
    assert embed.weight.grad.is_sparse == sparse
    assert embed.weight.grad.to_dense().sum(1).tolist() == [18.0, 6.0]
    if not sparse:
        torch._dynamo.reset()
        compiled = torch.compile(embed, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(IDS), embed(IDS))


@pytest.mark.parametrize(
    ("use", "error", "says"),
    [
        (lambda e: fl.train_only(e, {"weight": fl.everything}), fl.SelectionError, "a mapped table learns by rows"),
        (lambda e: e.weight.data.fill_(1), fl.PartialTensorError, "a mapped file is never written to"),
    ],
)
def test_what_would_write_to_the_file_is_refused(file, use, error, says):
    path, how = file
    embed = fl.mapped_embedding(path, **how)
    fl.train_only(embed, {"weight": fl.rows([3])})
    with pytest.raises(error, match=says):
        use(embed)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"shape": (12, 7)}, "288 bytes, but (12, 7) of torch.float32 takes 336. Correct shape or dtype."),
        ({"shape": (12, 6), "dtype": torch.float16}, "takes 144. Correct shape or dtype."),
        ({}, "not a safetensors file"),
    ],
)
def test_a_file_of_the_wrong_content_is_refused(tmp_path, table, how, says):
    path = tmp_path / "table.bin"
    path.write_bytes(table.numpy().tobytes())
    with pytest.raises(fl.FileError, match=re.escape(says)) as error:
        fl.mapped_embedding(path, **how)
    assert str(path) in str(error.value)


def test_the_tensor_has_to_be_named_where_there_are_several(tmp_path, table):
    path = tmp_path / "two.safetensors"
    save_file({"a": table, "b": table.clone(), "c": torch.zeros(3)}, path)
    with pytest.raises(fl.FileError, match=re.escape("Pass name=, one of ['a', 'b', 'c']")):
        fl.mapped_embedding(path)
    with pytest.raises(fl.FileError, match=re.escape("has no tensor 'd'")):
        fl.mapped_embedding(path, "d")
    with pytest.raises(fl.ShapeError, match="needs two dimensions"):
        fl.mapped_embedding(path, "c")
    assert torch.equal(fl.mapped_embedding(path, "b").weight, table)


STEP = """
import re, sys, torch, frostline as fl
embed = fl.mapped_embedding(sys.argv[1], sparse=True)
plan = fl.train_only(embed, {"weight": fl.rows(range(0, 400_000, 1000))})
optimizer = torch.optim.SGD(plan.parameters(), lr=0.1)
def private():  # kilobytes of this process's own, page cache excluded
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read()).group(1))
def step(seed):
    optimizer.zero_grad()
    embed(torch.randint(400_000, (2048,), generator=torch.Generator().manual_seed(seed))).sum().backward()
    optimizer.step()
step(0)
before = private()
for seed in range(1, 30):
    step(seed)
print(private() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_steps_over_a_large_file_take_no_memory_of_their_own(tmp_path):
    save_file({"table": torch.zeros(400_000, 64)}, tmp_path / "table.safetensors")  # 102 MB
    command = [sys.executable, "-c", STEP, str(tmp_path / "table.safetensors")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 10_000  # kilobytes: a tenth of the table
