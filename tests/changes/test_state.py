"""Which entries of a whole tensor a process holds, for every way of cutting it, against a loop over all entries."""

import itertools

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.changes.entry_hash import added, hash_range
from frostline.changes.one_pass import bits_of
from frostline.changes.state import StateTensor, unwrapped
from frostline.changes.state_hash import _hash

SHAPE = (5, 4, 3)


@pytest.mark.parametrize("cuts", [(2, 1, 1), (1, 2, 1), (3, 1, 2), (5, 4, 3), (7, 1, 1)])
def test_parts_know_their_indices_and_their_hashes_add_up_to_the_whole(cuts):
    whole = torch.randn(SHAPE)
    numbers = torch.arange(whole.numel()).view(SHAPE)
    total, seen = (0, 0), []
    for held in itertools.product(*(_spans(size, cut) for size, cut in zip(SHAPE, cuts, strict=True))):
        part = whole[held].contiguous()
        tensor = StateTensor(("x",), whole.dtype, SHAPE, lambda part=part: part, held)
        index = tensor.global_index(torch.arange(part.numel()))
        assert torch.equal(index, numbers[held].reshape(-1))
        inside, local = tensor.local_index(numbers.reshape(-1))
        assert torch.equal(numbers.reshape(-1)[inside], index)
        assert torch.equal(local, torch.arange(part.numel()))
        total = added(total, _hash(tensor))
        seen += index.tolist()
    assert sorted(seen) == list(range(whole.numel()))
    assert total == hash_range(bits_of(whole))


def _spans(size, cuts):
    step = -(-size // cuts)
    return [slice(min(start, size), min(start + step, size)) for start in range(0, cuts * step, step)]


def test_wrappers_change_no_name_and_no_digest():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    for wrapped in (nn.DataParallel(model), torch.compile(model), torch.compile(nn.DataParallel(model))):
        assert unwrapped(wrapped) is model
        assert fl.digest(wrapped) == fl.digest(model)


def test_a_digest_depends_on_names_dtypes_and_shapes_and_on_no_order():
    a, b = torch.arange(6.0), torch.ones(2)

    def digest(**tensors):
        module = nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return fl.digest(module)

    assert digest(a=a, b=b) == digest(b=b, a=a)
    others = [digest(a=a, b=b), digest(b=a, a=b), digest(a=a, c=b), digest(a=a.view(2, 3), b=b), digest(a=a)]
    others += [digest(a=a.view(torch.int32), b=b), digest(a=a, b=b, c=torch.empty(0)), digest(a=a.flip(0), b=b)]
    assert len(set(others)) == len(others)


def test_buffers_that_are_not_persistent_do_not_count():
    model = nn.Linear(2, 2)
    before = fl.digest(model)
    model.register_buffer("passing", torch.ones(2), persistent=False)
    assert fl.digest(model) == before
    model.register_buffer("kept", torch.ones(2))
    assert fl.digest(model) != before
