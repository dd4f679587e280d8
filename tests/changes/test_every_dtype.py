"""Drawn pairs of states: the changes from A to B, applied to A, give B to the bit; diff says what a slow loop says."""

import copy
import os

import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import save_file

import frostline as fl
from frostline.changes import diff
from frostline.changes.entry_hash import hash_at, hash_range
from frostline.changes.one_pass import bits_of, differing

from .cases import DTYPES, Holder, entries_of, from_bytes, pairs, raw_bytes

EXAMPLES = max(80, int(os.environ.get("FROSTLINE_SOAK", 0)) // 10)


@pytest.fixture(params=["c++", "torch"])
def backend(request, monkeypatch):
    monkeypatch.setenv("FROSTLINE_BACKEND", request.param)
    return request.param


@pytest.mark.parametrize("name", ["c++", "torch"])
def test_the_changes_from_a_to_b_over_a_give_b_to_the_bit(tmp_path_factory, monkeypatch, name):
    monkeypatch.setenv("FROSTLINE_BACKEND", name)
    folder = tmp_path_factory.mktemp("pairs")
    counts = {"moved": 0}

    @settings(max_examples=EXAMPLES, deadline=None, database=None)
    @given(pairs())
    def check(pair):
        a, b = pair
        model = Holder({key: tensor.clone() for key, tensor in a.items()})
        twin = copy.deepcopy(model)
        changes = fl.Changes(model)
        for key, tensor in b.items():
            vars(model)["_buffers"][key] = tensor.clone()
        expected = {
            key: [i for i, (x, y) in enumerate(zip(entries_of(a[key]), entries_of(b[key]), strict=True)) if x != y]
            for key in a
        }
        assert changes.save(folder / "changes.safetensors").entries == {k: len(v) for k, v in expected.items() if v}
        found = diff(twin, model, rows=True).tensors
        for key, tensor in a.items():
            width = max(1, tensor[0].numel()) if tensor.dim() and len(tensor) else 1
            rows = sorted({index // width for index in expected[key]})
            assert (found[key].entries, found[key].rows, list(found[key].row_ids)) == (
                len(expected[key]),
                len(rows),
                rows,
            )
        same = fl.digest(twin) == fl.digest(model)
        assert same == (not any(expected.values()))
        assert fl.apply_changes(twin, folder / "changes.safetensors") == fl.digest(model) == fl.digest(twin)
        for key, tensor in twin.named_buffers():
            assert raw_bytes(tensor) == raw_bytes(b[key])
        counts["moved"] += not same

    check()
    assert counts["moved"] > EXAMPLES / 4  # or this would say nothing


def test_files_of_every_dtype_take_the_changes_as_a_model_does(tmp_path, backend):
    data = bytes(range(256)) * 8
    dtypes = [
        dtype for dtype in DTYPES if dtype not in (torch.complex128, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
    ]
    tensors = {f"of_{str(dtype)[6:]}": from_bytes(data, dtype, (5, 13)) for dtype in dtypes}
    save_file(tensors, tmp_path / "model.safetensors")
    model = Holder(tensors)
    assert fl.digest(model) == fl.digest(tmp_path / "model.safetensors")
    changes = fl.Changes(model)
    for tensor in model.buffers():
        rows = tensor.view(torch.uint8)
        rows[[0, 3]] = rows[[3, 0]]
    changes.save(tmp_path / "changes.safetensors")
    before = fl.digest(tmp_path)
    assert fl.apply_changes(tmp_path, tmp_path / "changes.safetensors") == fl.digest(model) != before
    assert diff(model, tmp_path / "model.safetensors").is_same


def test_a_negative_zero_and_the_payload_of_a_nan_are_changes(tmp_path, backend):
    values = torch.tensor([0.0, float("nan"), 1.0, float("nan")])
    model, twin = Holder({"x": values.clone()}), Holder({"x": values.clone()})
    changes = fl.Changes(model)
    model.x.view(torch.int32)[:2] ^= torch.tensor([-(2**31), 1], dtype=torch.int32)
    assert changes.save(tmp_path / "changes.safetensors").entries == {"x": 2}
    fl.apply_changes(twin, tmp_path / "changes.safetensors")
    assert raw_bytes(twin.x) == raw_bytes(model.x) != raw_bytes(values)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4096 + 7, (1 << 18) + 3])
def test_kernel_and_plain_torch_find_and_hash_the_same(monkeypatch, dtype, size):
    generator = torch.Generator().manual_seed(size)
    base = torch.randint(0, 100, (size + 1,), generator=generator).to(dtype)[1:]  # at an address that is not aligned
    now = base.clone()
    at = torch.randperm(size, generator=generator)[: size // 50 + (size > 0)].sort().values
    now[at] ^= 1
    results = []
    for name in ("c++", "torch"):
        monkeypatch.setenv("FROSTLINE_BACKEND", name)
        parts = [*differing(now, base)]
        index = torch.cat([part.index for part in parts]) if parts else at[:0]
        assert torch.equal(index, at)
        assert all(torch.equal(part.new, now[part.index]) and torch.equal(part.old, base[part.index]) for part in parts)
        results.append((hash_range(now, 5), hash_at(torch.arange(5, size + 5), now), hash_range(base, 5)))
    assert results[0] == results[1]
    assert results[0][0] == results[0][1]
    assert size == 0 or results[0][0] != results[0][2]


def test_the_hash_of_an_entry_is_the_one_that_is_documented():
    def once(index, bits):
        mask, sums = 2**64 - 1, []
        z = (index * 0x9E3779B97F4A7C15 + bits) & mask
        for factor in (0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD):
            z = (z ^ z >> 32) * factor & mask
            sums.append(z ^ z >> 29)
        return sums

    values = torch.tensor([1, -1, 0, 77], dtype=torch.int16)
    expected = [
        sum(pair) % 2**64 for pair in zip(*(once(i, int(v) % 2**16) for i, v in enumerate(values)), strict=True)
    ]
    assert list(hash_range(bits_of(values))) == expected


def test_no_two_of_many_small_differences_have_one_hash():
    base = torch.zeros(300, dtype=torch.int16)
    seen = {hash_range(base)}
    for index in range(300):  # each bit of each entry, and each pair of entries exchanged
        for bit in range(16):
            seen.add(
                hash_at(torch.tensor([index]), torch.tensor([1 << bit if bit < 15 else -(2**15)], dtype=torch.int16))
            )
    ramp = torch.arange(300, dtype=torch.int16)
    for index in range(299):
        swapped = ramp.clone()
        swapped[[index, index + 1]] = ramp[[index + 1, index]]
        seen.add(hash_range(swapped))
    assert len(seen) == 1 + 300 * 16 + 299
    assert len({first for first, _ in seen}) == len({second for _, second in seen}) == len(seen)  # each lane alone
