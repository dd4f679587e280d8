"""Both parts are compared and copied by address: whatever was written, by whom, wherever the memory is now."""

import copy

import pytest
import torch
from torch import nn

import frostline as fl

from .cases import Pair

N = 160
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.complex128, torch.float8_e5m2]
MANY = torch.arange(N * N).view(N, N) % 5 == 2  # more entries than are compared one by one
CHOSEN = {
    "rows": fl.rows([9, 2, 40]),
    "a block": fl.rows([4, 5, 6]),
    "all rows": fl.rows(range(N)),
    "few entries": fl.entries(torch.arange(N * N).view(N, N) % 101 == 3),
    "many entries": fl.entries(MANY),
}
EACH = pytest.mark.parametrize("selection", CHOSEN.values(), ids=CHOSEN.keys())
UNCOUNTED = {
    "data": lambda leaf: leaf.data.view(-1)[7:8].zero_(),
    "numpy": lambda leaf: leaf.detach().numpy().reshape(-1).__setitem__(7, 0),
    "set_data": lambda leaf: setattr(leaf, "data", leaf.data * 2),
    "fused": lambda leaf: torch.optim.SGD([leaf], 0.1, fused=True).step(),
}


def same(pair):
    """The weight holds, bit for bit, what is learned, and elsewhere what it was."""
    whole = torch.empty_like(pair.plain).copy_(pair.plain.detach())
    bits = torch.uint8 if pair.dtype.itemsize == 1 else None
    target, learned = (each.detach().view(bits) if bits else each.detach() for each in (whole, pair.learned))
    target[pair.indices] = learned.view_as(target[pair.indices])
    with torch.no_grad():
        now = pair.weight.clone()
    return torch.equal(now.view(torch.uint8), whole.view(torch.uint8))


@EACH
@pytest.mark.parametrize("write", UNCOUNTED.values(), ids=UNCOUNTED.keys())
@pytest.mark.parametrize("used_before", [False, True])
def test_an_uncounted_write_of_one_learned_element_is_seen_by_the_next_use(used_before, write, selection):
    pair = Pair(selection, (N, N), torch.float32)
    if used_before:
        pair.weight.sum()
    before = pair.learned.detach().clone()
    pair.learned.grad = torch.ones_like(pair.learned)
    for _ in range(2):
        write(pair.learned)
        assert same(pair)
    assert not torch.equal(pair.learned, before)


@EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_dtype_is_copied_to_the_bit(dtype, selection):
    pair = Pair(selection, (N, N), dtype)
    for value in (2.0, float("nan"), -0.0):
        with torch.no_grad():
            pair.learned.view(-1)[3:9] = torch.tensor(value).to(dtype)
        assert same(pair)


@pytest.mark.parametrize("shape", [(N,), (N, 3, 5), (N, 2, 3, 5)])
def test_tensors_of_other_dimensions_are_copied(shape):
    for selection in (
        fl.rows([9, 2]),
        fl.rows([4, 5]),
        fl.entries(torch.arange(torch.Size(shape).numel()).view(shape) % 7 == 3),
    ):
        pair = Pair(selection, shape)
        pair.weight.sum()
        pair.learned.data.add_(1)
        assert same(pair)


@EACH
def test_memory_that_moved_or_was_converted_is_not_looked_at_where_it_was(selection):
    pair = Pair(selection, (N, N), torch.float32)
    pair.weight.sum()
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.bfloat16, torch.float32):
        pair.module.to(dtype)
        pair.plain, pair.dtype = nn.Parameter(pair.module.state_dict()["weight"].clone()), dtype
        pair.learned.data.view(-1)[3] = 4
        assert same(pair)
        pair.learned.data = pair.learned.data.clone()  # moves
        pair.learned.data.view(-1)[4] = 5
        assert same(pair)


def test_what_lies_at_an_address_in_another_dtype_is_not_taken_for_what_was_there():
    pair = Pair(fl.entries(MANY), (N, N), torch.float64)
    pair.weight.sum()
    frozen, learned = pair.weight.frozen, pair.learned
    for part in (frozen, learned):  # the same addresses, half as many bytes
        part.data = part.data.view(-1).view(torch.float32)[: part.numel()].view(part.shape).copy_(part.data.float())
    address = frozen.data_ptr()
    with torch.no_grad():
        learned[3] = 7
    assert frozen.data_ptr() == address
    pair.plain, pair.dtype = nn.Parameter(frozen.detach().clone()), torch.float32
    assert same(pair)


@pytest.mark.parametrize("moved", [copy.deepcopy, lambda module: module.share_memory()])
@EACH
def test_a_copied_or_shared_module_has_its_own_memory(moved, selection):
    pair = Pair(selection, (N, N), torch.float32)
    pair.weight.sum()
    original, pair.module = pair.module, moved(pair.module)
    pair.learned.data.view(-1)[5] = 9
    assert same(pair)
    assert (original is pair.module) == (float(original.weight_learned.detach().view(-1)[5]) == 9)


def test_learned_memory_with_gaps_is_copied_too():
    pair = Pair(fl.rows([9, 2, 40]), (N, N), torch.float32)
    pair.learned.data = torch.randn(N, 3).T
    assert not pair.learned.is_contiguous()
    assert same(pair)
    pair.learned.data[0, 0] = 7
    assert same(pair)


def test_a_write_to_the_frozen_memory_that_nothing_counted_gives_way_to_what_is_learned():
    pair = Pair(fl.rows([9, 2, 40]), (N, N), torch.float32)
    memory = pair.module.weight_frozen if hasattr(pair.module, "weight_frozen") else pair.weight.frozen
    memory.data[9, 9] = 123
    assert same(pair)
