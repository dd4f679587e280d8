"""Every kind of checkpoint has the digest of the model it was saved from; what could run code is refused."""

import json
import os
import pickle
import struct

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn

import frostline as fl
from frostline.changes import diff
from frostline.changes.checkpoints import read_checkpoint

from .cases import Holder, raw_bytes

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:.*TypedStorage is deprecated")


def make_model(tie=True):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(20, 6), nn.Linear(6, 3), nn.BatchNorm1d(3), nn.Linear(6, 20, bias=False)
    ).bfloat16()
    if tie:
        model[3].weight = model[0].weight
    return model


def stored(model):
    return {name: tensor for name, tensor in model.state_dict().items() if name != "3.weight"}


def as_safetensors(model, folder):
    save_file(stored(model), folder / "weights.safetensors")
    return folder / "weights.safetensors"


def as_folder(model, folder):
    save_file(stored(model), folder / "model.safetensors")
    return folder


def as_shards(model, folder):
    names, index = [*stored(model)], {}
    for number in range(3):
        part = {name: stored(model)[name] for name in names[number::3]}
        save_file(part, folder / f"model-{number}.safetensors")
        index |= dict.fromkeys(part, f"model-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def as_torch(model, folder):
    torch.save(model.state_dict(), folder / "model.pt")
    return folder / "model.pt"


def as_old_torch(model, folder):
    torch.save(model.state_dict(), folder / "model.bin", _use_new_zipfile_serialization=False)
    return folder / "model.bin"


def as_training_state(model, folder):
    optimizer = torch.optim.AdamW(model.parameters())
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 7}, folder / "state.pt")
    return folder / "state.pt"


@pytest.mark.parametrize("save", [as_safetensors, as_folder, as_shards, as_torch, as_old_torch, as_training_state])
@pytest.mark.parametrize("partial", [False, True], ids=["plain", "partial"])
def test_a_file_has_the_digest_of_the_model(tmp_path, save, partial):
    model = make_model()
    if partial:
        fl.train_only(model, {"0.weight": fl.rows([1, 4], dtype=torch.float32), "1.*": fl.everything})
        with torch.no_grad():
            model[0].weight_learned.add_(0.37)
    path = save(model, tmp_path)
    assert fl.digest(path) == fl.digest(model) != fl.digest(make_model(tie=False))
    assert fl.digest(path, per_tensor=True).keys() == stored(model).keys()
    assert diff(model, path).is_same
    with torch.no_grad():
        model[1].weight[2, 4] += 1
    found = diff(path, model)
    assert {name: tensor.entries for name, tensor in found.tensors.items() if tensor.entries} == {"1.weight": 1}
    assert fl.digest(path) != fl.digest(model)


@pytest.mark.parametrize("key", ["model", None])
def test_a_folder_of_torch_distributed_checkpoint_is_read_tensor_by_tensor(tmp_path, key):
    model = make_model(tie=False)
    state = model.state_dict() | {"wide": torch.randn(3, 2, dtype=torch.complex128), "one": torch.tensor(2.5)}
    dcp.save({key: state} if key else state, checkpoint_id=tmp_path / "dcp")
    plain = {name.replace(".", "_"): tensor for name, tensor in state.items()}
    expected = fl.digest(Holder(plain), per_tensor=True)
    found = fl.digest(tmp_path / "dcp", per_tensor=True)
    assert {name.replace(".", "_"): digest for name, digest in found.items()} == expected
    read = read_checkpoint(tmp_path / "dcp")
    assert read.keys() == state.keys()
    assert all(raw_bytes(read[name].read()) == raw_bytes(tensor) for name, tensor in state.items())


class Harmful:
    """Runs code where it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("where", ["torch.save", "old torch.save", "dcp"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path, where):
    harm = Harmful(tmp_path / "was-run")
    path = tmp_path / "checkpoint"
    if where == "dcp":
        path.mkdir()
        (path / ".metadata").write_bytes(pickle.dumps(harm))
    else:
        torch.save({"w": torch.ones(2), "x": harm}, path, _use_new_zipfile_serialization=where == "torch.save")
    with pytest.raises(fl.CheckpointError, match=r"run code|names posix\.mkdir|names nt\.mkdir") as raised:
        fl.digest(path)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "was-run").exists()
    pickle.loads(pickle.dumps(harm))  # the test's own guard: it would have
    assert (tmp_path / "was-run").exists()


def test_a_shard_outside_the_folder_is_refused(tmp_path):
    as_shards(make_model(), tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-1.safetensors", "../model-1.safetensors"))
    with pytest.raises(fl.CheckpointError, match="outside its own folder"):
        fl.digest(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.safetensors", b"", "damaged"),
        ("x.safetensors", struct.pack("<Q", 1 << 40) + b"{}", "damaged"),
        (
            "x.safetensors",
            struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}     ',
            "damaged",
        ),
        ("x.pt", b"PK\x03\x04 and no more", "damaged"),
        ("x.txt", b"hello", "damaged"),
        ("x.index.json", b"[]", "not an index of shards"),
        ("x.index.json", b'{"weight_map": {"a": "a.safetensors"}}', "is not there"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_line_that_names_it(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(fl.CheckpointError, match=says) as raised:
        fl.digest(tmp_path / name)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_model_or_with_several_is_refused(tmp_path):
    with pytest.raises(fl.CheckpointError, match=r"no safetensors"):
        fl.digest(tmp_path)
    with pytest.raises(fl.CheckpointError, match="no such file or folder"):
        fl.digest(tmp_path / "none")
    for name in "ab":
        save_file({"x": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(fl.CheckpointError, match="2 safetensors files and no index"):
        fl.digest(tmp_path)


def test_every_truncation_and_flipped_byte_of_a_header_is_refused_or_read_whole(tmp_path):
    model = make_model()
    whole = as_safetensors(model, tmp_path).read_bytes()
    expected, other = fl.digest(model), 0
    for at in [*range(0, 400, 7), *range(len(whole) - 60, len(whole), 9)]:
        for harmed in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]):
            (tmp_path / "harmed").write_bytes(harmed)
            try:
                assert fl.digest(tmp_path / "harmed") != expected or harmed == whole
                other += 1
            except fl.CheckpointError:
                pass
    assert other  # flipped values are another state


def test_ties_count_once_and_equal_copies_twice():
    tied, apart = make_model(), make_model(tie=False)
    apart[3].weight.data.copy_(apart[0].weight.data)
    assert len(fl.digest(tied, per_tensor=True)) + 1 == len(fl.digest(apart, per_tensor=True))
    assert fl.digest(tied) != fl.digest(apart)
    found = diff(tied, apart)
    assert found.ties == ["0.weight and 3.weight are tied only in A"]
    assert not found.is_same
    assert not found.changed


def test_a_learned_file_over_its_base_is_the_model_that_loaded_it(tmp_path):
    base, model = as_torch(make_model(), tmp_path), make_model()
    fl.train_only(model, {"0.weight": fl.rows([2, 9], dtype=torch.float32), "1.bias": fl.everything})
    with torch.no_grad():
        model[0].weight_learned.mul_(1.3)
        model[1].bias.add_(1)
    fl.save_learned(model, tmp_path / "learned.safetensors")
    laid = f"{base}+{tmp_path / 'learned.safetensors'}"
    assert fl.digest(laid) == fl.digest(model) != fl.digest(base)
    found = diff(base, tmp_path / "learned.safetensors", rows=True)
    assert found.tensors["0.weight"].row_ids == (2, 9)
    assert [name for name, tensor in found.tensors.items() if tensor.entries] == ["0.weight", "1.bias"]
    with pytest.raises(fl.CheckpointError, match="holds what was learned or changed"):
        fl.digest(tmp_path / "learned.safetensors")
    other = make_model()
    with torch.no_grad():
        other[0].weight[5] += 1
    torch.save(other.state_dict(), tmp_path / "other.pt")
    with pytest.warns(UserWarning, match=r"0\.weight was learned on another base"):
        diff(tmp_path / "other.pt", tmp_path / "learned.safetensors")


def test_changes_over_their_base_are_the_state_they_lead_to_and_over_another_are_refused(tmp_path):
    model = make_model()
    base, changes = as_torch(model, tmp_path), fl.Changes(model)
    for number in range(2):
        with torch.no_grad():
            model[1].weight[number, 0] += 1
        changes.save(tmp_path / f"{number}.safetensors")
    first, second = (tmp_path / f"{number}.safetensors" for number in range(2))
    assert fl.digest(f"{base}+{first}+{second}") == fl.digest(model)
    with pytest.raises(fl.CheckpointError, match="a file before this one is missing"):
        fl.digest(f"{base}+{second}")
