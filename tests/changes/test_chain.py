"""A chain of files: 100 steps arrive to the bit, and nothing that does not follow on is taken."""

import copy
import itertools
import json
import threading

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import frostline as fl

from .cases import Holder, raw_bytes


def make_model(tie=True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(60, 8), nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 8))
    model.append(nn.Linear(8, 60, bias=False))
    if tie:
        model[4].weight = model[0].weight
    return model.bfloat16()


def train(model, optimizer, seed):
    optimizer.zero_grad()
    ids = torch.randint(0, 60, (8,), generator=torch.Generator().manual_seed(seed))
    nn.functional.cross_entropy(model(ids).float(), ids).backward()
    optimizer.step()


def same_bits(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(raw_bytes(a[name]) == raw_bytes(b[name]) for name in a)


@pytest.fixture
def step(tmp_path):
    """A trained model, a twin that is as it was before, and the file between them."""
    model = make_model()
    twin, changes = copy.deepcopy(model), fl.Changes(model)
    train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), 1)
    changes.save(tmp_path / "step.safetensors")
    assert not same_bits(model, twin)
    return model, twin, tmp_path / "step.safetensors"


def test_100_steps_of_adamw_in_bfloat16_arrive_in_a_plain_a_partial_and_a_stored_model(tmp_path):
    model, plain, partial = make_model(), make_model(), make_model()
    fl.train_only(partial, {"0.weight": fl.rows([1, 5, 9], dtype=torch.float32), "1.weight": fl.rows([0, 3])})
    optimizer, changes = torch.optim.AdamW(model.parameters(), lr=1e-4), fl.Changes(model)
    digests = [changes.digest]
    for number in range(100):
        if number == 90:
            stored = {name: tensor for name, tensor in model.state_dict().items() if name != "4.weight"}
            save_file(stored, tmp_path / "model.safetensors")
        train(model, optimizer, number)
        changes.save(tmp_path / f"{number}.changes")
        digests.append(changes.digest)
    assert len(set(digests)) == 101
    for first, target in ((0, plain), (0, partial), (90, tmp_path / "model.safetensors")):
        for number in range(first, 100):
            assert fl.apply_changes(target, tmp_path / f"{number}.changes") == digests[number + 1]
    assert (
        fl.digest(model)
        == digests[-1]
        == fl.digest(plain)
        == fl.digest(partial)
        == fl.digest(tmp_path / "model.safetensors")
    )
    assert same_bits(model, plain)
    assert same_bits(model, partial)
    assert torch.equal(partial[0].weight_learned, model[0].weight[[1, 5, 9]].float())
    assert torch.equal(partial[1].weight_learned, model[1].weight[[0, 3]])


def test_an_optimizer_that_is_attached_goes_on_with_the_new_values(step):
    model, twin, file = step
    fl.train_only(twin, {"0.weight": fl.rows([1, 5]), "3.*": fl.everything})
    optimizer = torch.optim.AdamW([p for p in twin.parameters() if p.requires_grad], lr=0.01)
    fl.apply_changes(twin, file)
    fl.train_only(model, {"0.weight": fl.rows([1, 5]), "3.*": fl.everything})
    train(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01), 2)
    assert not same_bits(model, twin)
    train(twin, optimizer, 2)
    assert same_bits(model, twin)


def test_learned_values_keep_the_digits_that_the_file_does_not_change(tmp_path):
    model = nn.Embedding(4, 2).bfloat16()
    twin = copy.deepcopy(model)
    changes = fl.Changes(model)
    with torch.no_grad():
        model.weight[3, 0] += 1
    changes.save(tmp_path / "changes")
    fl.train_only(twin, {"weight": fl.rows([2, 3], dtype=torch.float32)})
    with torch.no_grad():
        twin.weight_learned[0, 0] *= 1 + 2**-12  # less than bfloat16 can tell
    kept = twin.weight_learned.detach().clone()
    fl.apply_changes(twin, tmp_path / "changes")
    assert torch.equal(twin.weight_learned[1], model.weight[3].float())
    assert torch.equal(twin.weight_learned[0], kept[0])
    assert kept[0, 0] != kept[0, 0].bfloat16()


def test_an_error_of_save_leaves_the_chain_where_it_was(tmp_path):
    model = make_model()
    twin, changes, before = copy.deepcopy(model), fl.Changes(model), fl.digest(model)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    with pytest.raises(fl.LearnedFileError, match=r"cannot be written|expected a file"):
        changes.save(tmp_path / "no" / "such" / "folder")
    assert changes.digest == before
    changes.save(tmp_path / "changes")
    assert fl.apply_changes(twin, tmp_path / "changes") == fl.digest(model) != before


@pytest.mark.parametrize("at", [0, 1])
def test_ctrl_c_before_or_after_a_file_is_written_leaves_a_chain_that_arrives(tmp_path, monkeypatch, at):
    from frostline.changes import chain

    model = make_model()
    twin, changes = copy.deepcopy(model), fl.Changes(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, 1)

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(*((chain.learned_format, "write") if at == 0 else (chain, "put_bits")), interrupted)
    with pytest.raises(KeyboardInterrupt):
        changes.save(tmp_path / "first")
    monkeypatch.undo()
    train(model, optimizer, 2)
    changes.save(tmp_path / "second")
    for name in ["second"] if at == 0 else ["first", "second"]:
        fl.apply_changes(twin, tmp_path / name)
    assert same_bits(model, twin)


def test_nothing_changed_is_a_link_too(tmp_path):
    model = make_model()
    twin = copy.deepcopy(model)
    assert str(fl.Changes(model).save(tmp_path / "none")) == "nothing changed"
    assert fl.apply_changes(twin, tmp_path / "none") == fl.digest(model)


def test_a_file_that_is_applied_already_is_refused(step):
    _, twin, file = step
    fl.apply_changes(twin, file)
    with pytest.raises(fl.CheckpointError, match="is in the state that it leads to"):
        fl.apply_changes(twin, file)


@pytest.mark.parametrize(
    ("harm", "error", "says"),
    [
        (lambda data: data[: len(data) // 2], fl.LearnedFileError, "damaged, or not a safetensors file"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), fl.LearnedFileError, "its SHA-256 is another"),
        (lambda data: b"", fl.LearnedFileError, "damaged"),
        (lambda data: data.replace(b'"after', b'"aftex'), fl.LearnedFileError, "damaged"),
    ],
    ids=["half of it", "a flipped bit", "empty", "another header"],
)
def test_a_damaged_file_is_refused_with_one_line_and_changes_nothing(step, harm, error, says):
    model, twin, file = step
    whole, before = file.read_bytes(), fl.digest(twin)
    file.write_bytes(harm(whole))
    with pytest.raises(error, match=says) as raised:
        fl.apply_changes(twin, file)
    assert "\n" not in str(raised.value)
    assert str(file) in str(raised.value)
    assert fl.digest(twin) == before
    file.write_bytes(whole)
    assert fl.apply_changes(twin, file) == fl.digest(model)


def test_another_model_and_a_missing_link_are_refused_and_nothing_has_changed(tmp_path):
    model = make_model()
    twin, other, changes = copy.deepcopy(model), make_model(), fl.Changes(model)
    with torch.no_grad():
        other[1].bias[2] += 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for number in range(2):
        train(model, optimizer, number)
        changes.save(tmp_path / str(number))
    for target, file in ((other, "0"), (twin, "1"), (nn.Linear(2, 2), "0")):
        before = fl.digest(target)
        with pytest.raises(fl.CheckpointError, match="another model, or a file before this one is missing"):
            fl.apply_changes(target, tmp_path / file)
        assert fl.digest(target) == before
    for number in range(2):
        fl.apply_changes(twin, tmp_path / str(number))
    assert same_bits(model, twin)


def test_values_that_do_not_lead_where_the_file_says_are_refused(step, monkeypatch):
    _, twin, file = step
    from frostline.partial import learned_format

    saved, step_of_it = learned_format.read_changes(file)
    _, item = saved[0]
    item.values.view(torch.int16)[0] ^= 1
    learned_format.write(dict(saved), file, step_of_it)  # with a SHA-256 that fits
    before = fl.digest(twin)
    with pytest.raises(fl.LearnedFileError, match=r"leads to .* but says"):
        fl.apply_changes(twin, file)
    assert fl.digest(twin) == before


def test_an_interrupted_apply_is_undone(step, monkeypatch):
    model, twin, file = step
    from frostline.changes import apply

    fl.train_only(twin, {"0.weight": fl.rows([1, 5], dtype=torch.float32)})
    before, learned, calls = fl.digest(twin), twin[0].weight_learned.detach().clone(), itertools.count()
    put = apply._put

    def interrupted(*args):
        if next(calls) == 3:
            raise KeyboardInterrupt
        put(*args)

    monkeypatch.setattr(apply, "_put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fl.apply_changes(twin, file)
    assert next(calls) > 3
    assert fl.digest(twin) == before
    assert torch.equal(twin[0].weight_learned, learned)
    monkeypatch.undo()
    assert fl.apply_changes(twin, file) == fl.digest(model)


def test_the_two_kinds_of_file_name_each_other_s_function(step, tmp_path):
    _, twin, file = step
    fl.train_only(twin, {"0.weight": fl.rows([1])})
    with pytest.raises(fl.LearnedFileError, match=r"fl\.apply_changes"):
        fl.load_learned(twin, file)
    fl.save_learned(twin, tmp_path / "learned")
    with pytest.raises(fl.LearnedFileError, match=r"fl\.load_learned"):
        fl.apply_changes(twin, tmp_path / "learned")


def test_a_file_opens_with_plain_safetensors_and_holds_indices_and_values(tmp_path):
    model, file = make_model(), tmp_path / "step.safetensors"
    twin, changes = copy.deepcopy(model), fl.Changes(model)
    with torch.no_grad():
        model[0].weight[[3, 50]] += 1
        model[1].bias += 1
    changes.save(file)
    values = load_file(file)
    with safe_open(file, framework="pt") as opened:
        about = json.loads(opened.metadata()["tensors"])
    state = twin.state_dict()
    assert {about[name]["kind"] for name in about} == {"changed", "everything"}
    for name, item in about.items():
        flat = state[name].reshape(-1)
        if item["kind"] == "changed":
            assert values[f"{name}:indices"].dtype == torch.int32
            flat[values[f"{name}:indices"].long()] = values[name]
        else:
            flat.copy_(values[name].reshape(-1))
    assert same_bits(model, twin)


def test_a_model_whose_tensors_are_others_needs_a_new_object(tmp_path):
    model = make_model()
    changes = fl.Changes(model)
    model[3] = nn.Linear(16, 9).bfloat16()
    with pytest.raises(fl.CheckpointError, match=r"3\.bias: it was bfloat16 \[8\] .* is bfloat16 \[9\]"):
        changes.save(tmp_path / "changes")
    assert not (tmp_path / "changes").exists()


def test_a_plan_and_a_merge_between_two_files_change_nothing_about_the_chain(tmp_path):
    model = make_model()
    twin, changes = copy.deepcopy(model), fl.Changes(model)
    plan = fl.train_only(model, {"0.weight": fl.rows([2, 3])})
    train(model, torch.optim.SGD(plan.parameters(), lr=1.0), 1)
    assert set(changes.save(tmp_path / "0").entries) <= {
        "0.weight",
        "2.running_mean",
        "2.running_var",
        "2.num_batches_tracked",
    }
    fl.merge(model)
    train(model, torch.optim.SGD(model.parameters(), lr=1.0), 2)
    changes.save(tmp_path / "1")
    for number in range(2):
        fl.apply_changes(twin, tmp_path / str(number))
    assert same_bits(model, twin)


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.eye(3, device="meta"), "meta device"),
        (nn.UninitializedParameter(), "not its own memory"),
    ],
    ids=["sparse", "meta", "lazy"],
)
def test_tensors_without_bits_to_compare_are_refused_by_name(tensor, says):
    for call in (fl.digest, fl.Changes):
        with pytest.raises(fl.CheckpointError, match=f"x: .*{says}"):
            call(Holder({"x": tensor}))


def test_tensors_that_are_not_contiguous_are_written_where_they_lie(tmp_path):
    tensors = {
        "conv": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "turned": torch.randn(3, 5).t(),
        "wide": torch.randn(3, 4, dtype=torch.complex128).t(),
        "conjugated": torch.randn(4, dtype=torch.complex64).conj(),
    }
    model, twin = Holder(tensors), Holder({name: tensor.clone() for name, tensor in tensors.items()})
    assert not twin.conv.is_contiguous()
    changes = fl.Changes(model)
    for tensor in model.buffers():
        tensor[1].mul_(2)
    changes.save(tmp_path / "changes")
    assert fl.apply_changes(twin, tmp_path / "changes") == fl.digest(model)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))


def test_a_mapped_table_is_never_written_to(tmp_path):
    save_file({"weight": torch.randn(5, 2)}, tmp_path / "table.safetensors")
    plain = nn.Embedding.from_pretrained(load_file(tmp_path / "table.safetensors")["weight"])
    changes = fl.Changes(plain)
    plain.weight.data[1] = 7
    changes.save(tmp_path / "changes")
    mapped = fl.mapped_embedding(tmp_path / "table.safetensors")
    with pytest.raises(fl.CheckpointError, match="weight is mapped and never written to"):
        fl.apply_changes(mapped, tmp_path / "changes")


def test_threads_save_chains_of_their_own(tmp_path):
    done = []

    def chain(number):
        model = make_model()
        twin, changes = copy.deepcopy(model), fl.Changes(model)
        with torch.no_grad():
            model[1].bias[number] += 1
        changes.save(tmp_path / f"changes-{number}")
        done.append(fl.apply_changes(twin, tmp_path / f"changes-{number}") == fl.digest(model))

    threads = [threading.Thread(target=chain, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [True] * 4
