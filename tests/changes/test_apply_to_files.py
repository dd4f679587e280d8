"""Changes applied to files: the old state or the new one is whole, whatever ends the process and whenever."""

import copy
import json
import os
import shutil
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import frostline as fl

from .cases import Holder


def make_model():
    torch.manual_seed(0)
    tensors = {f"t{number}": torch.randn(30, 4).bfloat16() for number in range(4)}
    return Holder(tensors | {"odd": torch.tensor([True, False, True]), "last": torch.randn(3, dtype=torch.complex64)})


def write_folder(model, folder, shards):
    folder.mkdir()
    state = model.state_dict()
    if not shards:
        save_file(state, folder / "model.safetensors")
        return folder
    index = {name: f"model-{number % 3}.safetensors" for number, name in enumerate(state)}
    for file in set(index.values()):
        save_file(
            {name: state[name] for name in state if index[name] == file}, folder / file, metadata={"format": "pt"}
        )
    content = {"metadata": {"total_size": 7}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return folder


def move(model, number):
    """Change tensors of two shards of three, and leave the third as it is."""
    for name in ("t0", "t1", "t3"):
        getattr(model, name)[number] += 1
    return model


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
def test_a_chain_arrives_in_a_folder_and_only_shards_that_change_are_written(tmp_path, shards):
    model = make_model()
    folder = write_folder(model, tmp_path / "model", shards)
    untouched = folder / "model-2.safetensors"
    written = (untouched.stat().st_ino, untouched.stat().st_mtime_ns) if shards else None
    changes = fl.Changes(model)
    for number in range(3):
        move(model, number)
        changes.save(tmp_path / f"{number}.changes")
        assert fl.apply_changes(folder, tmp_path / f"{number}.changes") == fl.digest(model) == fl.digest(folder)
    read = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert read.keys() == model.state_dict().keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in model.state_dict().items())
    if shards:
        assert (untouched.stat().st_ino, untouched.stat().st_mtime_ns) == written
        assert len([*folder.glob("*.safetensors")]) == 3  # the old ones are gone
        content = json.loads((folder / "model.safetensors.index.json").read_text())
        assert content["metadata"] == {"total_size": 7}
    assert not [*folder.glob(".*")]


def test_a_tensor_that_begins_at_an_odd_byte_is_written_where_it_lies(tmp_path):
    header = {
        "a": {"dtype": "BOOL", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    text = json.dumps(header).encode()
    values = torch.tensor([1.5, -2.5])
    raw = bytes([1, 0, 1]) + values.numpy().tobytes()
    (tmp_path / "odd.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw)
    model = Holder({"a": torch.tensor([True, False, True]), "b": values.clone()})
    assert fl.digest(tmp_path / "odd.safetensors") == fl.digest(model)
    changes = fl.Changes(model)
    model.b[1] = 7.0
    changes.save(tmp_path / "changes")
    assert fl.apply_changes(tmp_path / "odd.safetensors", tmp_path / "changes") == fl.digest(model)
    assert load_file(tmp_path / "odd.safetensors")["b"].tolist() == [1.5, 7.0]


@pytest.mark.parametrize("kind", ["another model", "a missing link", "torch.save", "a flipped byte"])
def test_what_does_not_follow_on_is_refused_and_no_byte_of_the_folder_changes(tmp_path, kind):
    model = make_model()
    folder = write_folder(model, tmp_path / "model", shards=True)
    changes = fl.Changes(model)
    for number in range(2):
        move(model, number)
        changes.save(tmp_path / str(number))
    file = tmp_path / ("1" if kind == "a missing link" else "0")
    if kind == "another model":
        save_file(
            {"t0": torch.zeros(30, 4).bfloat16(), "t3": torch.zeros(30, 4).bfloat16()}, folder / "model-0.safetensors"
        )
    elif kind == "torch.save":
        shutil.rmtree(folder)
        folder.mkdir()
        torch.save(make_model().state_dict(), folder / "pytorch_model.bin")
    elif kind == "a flipped byte":
        data = bytearray(file.read_bytes())
        data[-2] ^= 4
        file.write_bytes(data)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(fl.FileError, match=r"another model|not safetensors|SHA-256") as raised:
        fl.apply_changes(folder, file)
    assert "\n" not in str(raised.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


class _Killer:
    """Ends the process, as `kill -9` does, when it opens a file to write, renames or removes one, for the n-th time."""

    def __init__(self, n):
        self.left = n

    def __call__(self, event, args):
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.remove", "os.chmod", "shutil.copyfile"):
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)


def _killed_at(n, call):
    """Run `call` in a process that is killed when it changes files for the n-th time; return whether it was."""
    child = os.fork()
    if child == 0:
        try:
            sys.addaudithook(_Killer(n))
            call()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] != 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
def test_kill_9_at_any_moment_of_apply_leaves_the_old_or_the_new_state_whole(tmp_path, shards):
    model = make_model()
    original = write_folder(model, tmp_path / "original", shards)
    old, changes = fl.digest(model), fl.Changes(model)
    move(model, 1)
    changes.save(tmp_path / "changes")
    new, seen, n = fl.digest(model), [], 0
    torch.set_num_threads(1)
    while True:
        folder = tmp_path / f"model-{n}"
        shutil.copytree(original, folder)
        killed = _killed_at(n, lambda folder=folder: fl.apply_changes(folder, tmp_path / "changes"))
        seen.append(fl.digest(folder))
        assert seen[-1] in (old, new)
        if seen[-1] == old:  # what is left behind does not stand in the way
            assert fl.apply_changes(folder, tmp_path / "changes") == new
            assert len([*folder.glob("*.safetensors")]) == len([*original.glob("*.safetensors")])
        if not killed:
            break
        n += 1
    assert n > 5
    assert seen[0] == old
    assert seen[-1] == new


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_kill_9_at_any_moment_of_save_leaves_the_old_file_or_the_new_one_whole(tmp_path):
    torch.set_num_threads(1)
    model = make_model()
    twin, changes = copy.deepcopy(model), fl.Changes(model)
    file = tmp_path / "changes"
    move(model, 0)
    changes.save(file)
    old = file.read_bytes()
    both, n, done = fl.Changes(twin), 0, set()
    move(move(twin, 0), 2)
    while _killed_at(n, lambda: both.save(file)):
        assert file.read_bytes() == old or fl.apply_changes(make_model(), file) == fl.digest(twin)
        done.add(file.read_bytes() == old)
        n += 1
    assert n > 2
    assert True in done
    assert file.read_bytes() != old
    assert fl.apply_changes(make_model(), file) == fl.digest(twin)
