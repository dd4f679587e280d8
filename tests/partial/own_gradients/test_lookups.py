"""Lookups, `weight[ids]` and `index_select` have a plain table's rows, and what learns gets the masked gradient."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

import frostline as fl

from .cases import EACH_DTYPE, EACH_SELECTION, ROWS_AND_ENTRIES, SELECTIONS, D, Pair, V

IDS = torch.tensor([[5, 5, 100], [0, 7, 3]])
LOOKUPS = {
    "embedding": lambda w, ids: F.embedding(ids, w),
    "by ids": lambda w, ids: w[ids],
    "by ids from the end": lambda w, ids: w[ids - V],
    "by int32": lambda w, ids: w[ids.int()],
    "by one id": lambda w, ids: F.embedding(ids[0, 0], w),
    "index_select": lambda w, ids: w.index_select(0, ids.flatten()),
    "torch.index_select": lambda w, ids: torch.index_select(input=w, dim=-2, index=ids.flatten()),
    "of columns": lambda w, ids: w.index_select(1, torch.arange(60)),
    "by two tensors": lambda w, ids: w[ids, torch.arange(60)[:, None, None]],
    "a bag": lambda w, ids: F.embedding_bag(ids, w, mode="sum"),
    "of a view": lambda w, ids: w.T[:, ids],
    "take_along_dim": lambda w, ids: w.take_along_dim(ids.flatten()[:, None].expand(-1, D), 0),
}


@EACH_SELECTION
@pytest.mark.parametrize("look_up", LOOKUPS.values(), ids=LOOKUPS.keys())
def test_a_lookup_gives_what_learns_the_masked_gradient(look_up, select):
    Pair(select()).check(lambda w: look_up(w, IDS))


@ROWS_AND_ENTRIES
@EACH_DTYPE
@pytest.mark.parametrize("name", ["embedding", "by ids", "index_select"])
def test_a_lookup_of_any_dtype_does(name, dtype, select):
    if (name, dtype) == ("embedding", torch.complex64):
        name = "by ids"  # torch has no gradient of a complex embedding
    Pair(select(), dtype=dtype).check(lambda w: LOOKUPS[name](w, IDS))


@pytest.mark.parametrize("shape", [(12,), (12, 4, 3), (12, 2, 3, 2)])
def test_ids_of_tensors_of_other_dimensions_do_and_under_torch_func_too(shape):
    pair, ids = Pair(fl.rows([7, 2]), shape), torch.tensor([7, 7, 0])
    pair.check(lambda w: w[ids])
    pair.check(lambda w: w.index_select(0, ids))
    x = torch.randn(2, 3, *shape[1:], dtype=torch.float64)
    mine, theirs = (torch.vmap(lambda each, w=weight: each * w[ids])(x) for weight, _ in pair.both())
    assert torch.equal(mine, theirs)


def test_the_gradient_of_a_float8_table_is_looked_up_in_all_its_bits():
    pair = Pair(SELECTIONS["rows in any order"](), dtype=torch.float8_e4m3fn)
    with torch.no_grad():
        for look_up in (LOOKUPS["by ids"], LOOKUPS["embedding"], LOOKUPS["index_select"]):
            mine, theirs = look_up(pair.weight, IDS), look_up(pair.plain, IDS)
            assert torch.equal(mine.view(torch.uint8), theirs.view(torch.uint8))


@pytest.mark.parametrize("look_up", [LOOKUPS["embedding"], LOOKUPS["by ids"], LOOKUPS["index_select"]])
def test_lookups_show_the_new_values_after_each_step_and_each_uncounted_write(look_up):
    pair = Pair(SELECTIONS["rows in any order"]())
    for write in (
        lambda leaf: torch.optim.SGD([leaf], 0.1).step(),
        lambda leaf: torch.optim.SGD([leaf], 0.1, fused=True).step(),
        lambda leaf: leaf.data.add_(1),
        lambda leaf: leaf.detach().numpy().__imul__(2),
    ):
        pair.learned.grad = torch.ones_like(pair.learned)
        before = look_up(pair.weight, IDS).detach()
        write(pair.learned)
        after = look_up(pair.weight, IDS).detach().view(-1, D)
        assert torch.equal(after[[2, 1, 5]], pair.learned)
        assert torch.equal(after[3:5], pair.plain[[0, 7]])
        assert not torch.equal(after, before.view(-1, D))
        with torch.no_grad():
            pair.weight[7] += 1
            pair.plain[7] += 1


@pytest.mark.parametrize("name", ["embedding", "by ids", "index_select"])
def test_an_id_outside_of_the_table_raises_what_torch_raises(name):
    for weight, _ in Pair(SELECTIONS["rows in any order"]()).both():
        for bad in (V, -V - 1):
            with pytest.raises((IndexError, RuntimeError)):
                LOOKUPS[name](weight, torch.tensor([[0, bad]]))
        for dim in (2, 4, -3):
            with pytest.raises(IndexError):
                weight.index_select(dim, torch.tensor([0]))


@ROWS_AND_ENTRIES
def test_no_ids_give_no_rows_and_zeros(select):
    pair = Pair(select())
    for look_up in (LOOKUPS["embedding"], LOOKUPS["by ids"], LOOKUPS["index_select"]):
        rows = look_up(pair.weight, torch.empty(0, 2, dtype=torch.long))
        assert rows.shape[-1] == D
        rows.sum().backward()
    assert not pair.learned.grad.any()


def test_rows_of_no_columns_are_looked_up():
    pair = Pair(fl.rows([1]), (3, 0, 2))
    pair.weight[torch.tensor([1, 0])].sum().backward()
    assert pair.learned.grad.shape == (1, 0, 2)


@pytest.mark.parametrize("name", ["embedding", "by ids"])
def test_a_second_backward_raises_as_after_a_plain_lookup(name):
    pair = Pair(SELECTIONS["rows in any order"]())
    for weight, leaf in pair.both():
        loss = LOOKUPS[name](weight, IDS).sum()
        loss.backward(retain_graph=True)
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()
        assert leaf.grad.abs().sum() > 0
    pair.close(pair.learned.grad, pair.masked(pair.plain.grad))


@ROWS_AND_ENTRIES
def test_the_gradient_of_a_gradient_through_a_lookup_is_the_plain_one(select):
    pair, results = Pair(select()), []
    for weight, leaf in pair.both():
        x = torch.linspace(-1, 1, D, dtype=torch.float64, requires_grad=True)
        first, for_x = torch.autograd.grad(((weight[IDS] * x).tanh() ** 2).sum(), [leaf, x], create_graph=True)
        first = first if leaf is pair.learned else pair.masked(first)
        second, for_x2 = torch.autograd.grad((first**2).sum() + (for_x**2).sum(), [leaf, x])
        results.append((first, for_x, second if leaf is pair.learned else pair.masked(second), for_x2))
    for mine, theirs in zip(*results, strict=True):
        pair.close(mine, theirs)


def test_several_gradients_at_once_are_those_of_a_plain_lookup():
    pair = Pair(SELECTIONS["rows in any order"]())
    upstream = torch.randn(3, 2, 3, D, dtype=torch.float64)
    for name in ("embedding", "by ids"):
        mine, theirs = (
            torch.autograd.grad(LOOKUPS[name](weight, IDS), leaf, upstream, is_grads_batched=True)[0]
            for weight, leaf in pair.both()
        )
        for index in range(3):
            pair.close(mine[index], pair.masked(theirs[index]))


@pytest.mark.parametrize("shape", [(2, 3), (6,), ()])
def test_a_sparse_gradient_holds_the_rows_in_use_alone(shape):
    pair = Pair(SELECTIONS["rows in any order"]())
    ids = IDS.flatten()[: max(1, torch.Size(shape).numel())].view(shape)
    for weight, _ in pair.both():
        (F.embedding(ids, weight, sparse=True) * 3).sum().backward()
    assert pair.learned.grad.is_sparse
    assert set(pair.learned.grad.coalesce().indices()[0].tolist()) <= {0, 1, 2}
    assert len(pair.learned.grad.coalesce().indices()[0]) == len(set(ids.flatten().tolist()) & {100, 5, 3})
    pair.close(pair.learned.grad.to_dense(), pair.masked(pair.plain.grad.to_dense()))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by torch, at the first use of forward mode
@pytest.mark.parametrize("sparse", [False, True])
def test_a_held_table_is_looked_up_under_torch_func_and_in_forward_mode(sparse):
    pair, results = Pair(SELECTIONS["rows in any order"]()), []
    x = torch.randn(2, 3, D, dtype=torch.float64)
    for weight, _ in pair.both():
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x)) * F.embedding(IDS, weight, sparse=sparse)
            tangent = forward_ad.unpack_dual(dual).tangent.detach()
        gradient = torch.func.grad(lambda each, w=weight: (each * F.embedding(IDS, w, sparse=sparse)).sum())(x)
        results.append((tangent, gradient.detach()))
    for mine, theirs in zip(*results, strict=True):
        assert torch.equal(mine, theirs)


def test_a_lookup_learns_beside_a_head_a_view_and_ids_of_one_weight():
    pair = Pair(SELECTIONS["rows in any order"]())
    pair.check(
        lambda w: (F.embedding(IDS, w) @ w.T).sum(0) + (w[5] * w[7]).sum() + w[IDS[0]].sum() + F.linear(w[2:5], w)
    )


def test_a_table_of_bfloat16_looks_up_float32_rows_that_learn():
    pair = Pair(SELECTIONS["rows in any order"](), dtype=torch.bfloat16)
    pair.learned.data = pair.learned.data.float()
    for weight, _ in pair.both():
        rows = F.embedding(IDS, weight)
        assert rows.dtype == torch.bfloat16
        rows.sum().backward()
    assert pair.learned.grad.dtype == torch.float32
    pair.close(pair.learned.grad, pair.masked(pair.plain.grad).float())


def test_a_step_with_lookups_leaves_no_cycles():
    table = nn.Embedding(V, D)
    fl.train_only(table, {"weight": fl.rows([5, 3])})

    def step():
        (table(IDS).sum() + table.weight[IDS].sum()).backward()
        table.weight_learned.grad = None

    for _ in range(3):
        step()
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(50):
            step()
        assert len(gc.get_objects()) - before < 50
    finally:
        gc.enable()
