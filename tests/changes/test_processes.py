"""A chain that two processes write is the one that one process reads, and three; each part has one owner."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import frostline as fl

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

SCRIPT = Path(__file__).with_name("chain_processes.py")


@pytest.fixture(scope="module", params=["ddp", "partial"])
def wrap(request):
    return request.param


@pytest.fixture(scope="module")
def chain(launch, wrap, tmp_path_factory):
    """What two processes saved, and the digests that they printed."""
    folder = tmp_path_factory.mktemp(wrap)
    return folder, launch(SCRIPT, "save", wrap, folder, processes=2).split()


def test_what_two_processes_save_leads_one_process_and_three_to_the_same_bits(launch, chain, wrap, tmp_path):
    folder, saved = chain
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    assert len(set(saved)) == 4  # every step changed something
    assert launch(SCRIPT, "apply", wrap, tmp_path, processes=3).split() == saved
    for step, digest in enumerate(saved[1:]):
        assert fl.apply_changes(tmp_path / "base.safetensors", tmp_path / f"step-{step}.safetensors") == digest
    assert fl.digest(tmp_path / "base.safetensors") == saved[-1]
    entries = [tuple(each) for file in tmp_path.glob("step-0*") for each in _entries(file)]
    assert len(entries) == len(set(entries))  # of replicas, one writes
    assert len([*tmp_path.glob("step-0*")]) == (1 if wrap == "ddp" else 2)


def _entries(file):
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            if name.endswith(":indices"):
                yield from ((name, index) for index in opened.get_tensor(name).tolist())


def test_a_file_of_several_processes_is_refused_without_its_parts(chain, wrap, tmp_path):
    if wrap == "ddp":
        return  # one process wrote all of it
    shutil.copytree(chain[0], tmp_path, dirs_exist_ok=True)
    before = (tmp_path / "base.safetensors").read_bytes()
    (part,) = tmp_path.glob("step-0.*.00001.safetensors")
    other = next(tmp_path.glob("step-1.*.00001.safetensors"))
    content = part.read_bytes()
    for broken in (None, content[:-1], other.read_bytes()):
        part.unlink(missing_ok=True)
        if broken is not None:
            part.write_bytes(broken)
        with pytest.raises(fl.LearnedFileError, match=part.name):
            fl.apply_changes(tmp_path / "base.safetensors", tmp_path / "step-0.safetensors")
    assert (tmp_path / "base.safetensors").read_bytes() == before
    part.write_bytes(content)
    fl.apply_changes(tmp_path / "base.safetensors", tmp_path / "step-0.safetensors")
    assert (tmp_path / "base.safetensors").read_bytes() != before
