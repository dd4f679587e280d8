"""Products with a partial tensor have the bits of a plain tensor's, and what learns gets the masked gradient."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import frostline as fl

from .cases import EACH_DTYPE, EACH_SELECTION, ENTRIES, ROWS_AND_ENTRIES, SELECTIONS, D, Pair, V

PRODUCTS = {
    "x @ w.T": lambda w, x: x @ w.T,
    "x @ w": lambda w, x: x.T[:, :V].mT.repeat(1, 2)[:, :V] @ w,
    "w @ x.T": lambda w, x: w @ x.T,
    "w.T @ y": lambda w, x: w.T @ x.repeat(1, 2)[:V],
    "mm": lambda w, x: torch.mm(x, w.t()),
    "by keyword": lambda w, x: torch.mm(input=x, mat2=w.T) + torch.matmul(x, other=w.T),
    "mv": lambda w, x: torch.mv(w, x[0]),
    "a vector": lambda w, x: x[0] @ w.T,
    "in three dimensions": lambda w, x: x.view(4, -1, D) @ w.mT,
    "broadcast": lambda w, x: x.view(4, -1, D) @ w.T[None],
    "addmm": lambda w, x: torch.addmm(torch.ones(V, dtype=x.dtype), x, w.T),
    "addmm by keyword": lambda w, x: torch.addmm(torch.ones(V, dtype=x.dtype), mat1=x, mat2=w.T, beta=2),
    "linear": lambda w, x: F.linear(x.view(4, -1, D), w),
    "linear of a view": lambda w, x: F.linear(x, w.T.T),
    "linear of some rows": lambda w, x: F.linear(x, w[2:50]),
    "einsum": lambda w, x: torch.einsum("bd,vd->bv", x, w),
    "einsum the other way": lambda w, x: torch.einsum("vd, bd -> vb", w, x),
    "einsum that moves dimensions": lambda w, x: torch.einsum("abd,vd->bva", x.view(4, -1, D), w),
    "einsum that swaps square ones": lambda w, x: torch.einsum("abd,vd->bav", x[:256].view(16, 16, D), w),
    "einsum that sums": lambda w, x: torch.einsum("vd,bd->b", w, x),
    "einsum that broadcasts": lambda w, x: torch.einsum("bd,vd->bv", x[:, :1], w),
    "einsum of elements": lambda w, x: torch.einsum("vd,vd->vd", w, x[:V]),
    "einsum to a number": lambda w, x: torch.einsum("bd,vd->", x, w),
    "einsum of a list": lambda w, x: torch.einsum("bd,vd->bv", [x, w]),
    "a weight times itself": lambda w, x: x @ w.T @ (w @ w.T),
    "a bare outer product": lambda w, x: torch.einsum("vd,b->bvd", w, x[:3, 0]),
}
EXPERTS = {
    "bmm": lambda w, x: torch.bmm(x, w),
    "matmul": lambda w, x: x @ w,
    "bmm of transposed experts": lambda w, x: torch.bmm(w.transpose(1, 2), x.mT),
    "einsum": lambda w, x: torch.einsum("end,edh->enh", x, w),
    "a sum over experts": lambda w, x: torch.einsum("end,edh->nh", x, w),
    "one input for all": lambda w, x: torch.einsum("nd,edh->neh", x[0], w),
    "one by one": lambda w, x: torch.stack([x[k] @ w[k] for k in range(6)]),
    "in a loop": lambda w, x: sum(x[0] @ expert for expert in w),
    "linear": lambda w, x: torch.stack([F.linear(x[k], w[k].T) for k in range(6)]),
    "chosen experts": lambda w, x: torch.bmm(x[:3], w[torch.tensor([4, 4, 0])]),
    "broadcast": lambda w, x: x[:1] @ w,
}


def x_of(dtype=torch.float64, size=400):
    return torch.randn(size, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def check(pair, use, x, second=True):
    """The bits of both are the same, and the gradients of what learns and of the input, and theirs."""
    results = []
    for weight, leaf in pair.both():
        x = x.detach().requires_grad_()
        out = use(weight, x)
        upstream = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
        first = torch.autograd.grad(out, [leaf, x], upstream, retain_graph=True)
        results.append([out.detach(), *first])
        if second:
            first = torch.autograd.grad(out, [leaf, x], upstream, create_graph=True)
            for_learned = first[0] if leaf is pair.learned else pair.masked(first[0])
            penalty = for_learned.abs().square().sum() + first[1].abs().square().sum()
            results[-1].extend(torch.autograd.grad(penalty, [leaf, x], allow_unused=True, materialize_grads=True))
    mine, theirs = results
    if use is not PRODUCTS["linear"]:  # of rows: two products, as compiled and sharded
        assert torch.equal(mine[0], theirs[0])
    assert pair.masked(theirs[1]).abs().sum() > 0
    for index, wanted in enumerate(theirs):
        wanted = pair.masked(wanted) if index in (1, 3) else wanted
        scale = max(1.0, float(wanted.abs().max()))
        pair.close(mine[index] / scale, wanted / scale)


@EACH_SELECTION
@pytest.mark.parametrize("use", PRODUCTS.values(), ids=PRODUCTS.keys())
def test_a_product_gives_the_gradients_of_a_plain_weight(use, select):
    check(Pair(select()), use, x_of())


@ROWS_AND_ENTRIES
@EACH_DTYPE
@pytest.mark.parametrize("name", ["x @ w.T", "w @ x.T", "linear", "einsum that moves dimensions", "addmm"])
def test_a_product_of_any_dtype_does(name, dtype, select):
    check(Pair(select(), dtype=dtype), PRODUCTS[name], x_of(dtype), second=dtype != torch.bfloat16)


@pytest.mark.parametrize(
    "selection", [fl.rows([4, 1]), fl.entries(torch.arange(6 * 32 * 48).view(6, 32, 48) % 31 == 1)]
)
@pytest.mark.parametrize("use", EXPERTS.values(), ids=EXPERTS.keys())
def test_a_product_with_experts_does(use, selection):
    x = torch.randn(6, 9, 32, dtype=torch.float64)
    check(Pair(selection, (6, 32, 48)), use, x)


@pytest.mark.parametrize("selection", [fl.rows([7, 2]), fl.entries(torch.arange(12) % 5 == 2)])
def test_a_product_with_a_vector_does(selection):
    check(Pair(selection, (12,)), lambda w, x: x[:, :12] @ w, x_of(size=9))


@ROWS_AND_ENTRIES
@pytest.mark.parametrize("use", PRODUCTS.values(), ids=PRODUCTS.keys())
def test_under_autocast_a_product_has_the_dtype_bits_and_gradients_of_a_plain_one(use, select):
    pair, x = Pair(select(), dtype=torch.float32), x_of(torch.float32)
    results = []
    for weight, leaf in pair.both():
        with torch.autocast("cpu", torch.bfloat16):
            out = use(weight, x)
        results.append((out, torch.autograd.grad(out.float().sum(), leaf)[0]))
    (mine, got), (theirs, dense) = results
    assert mine.dtype == theirs.dtype
    torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-2)
    wanted = pair.masked(dense)
    scale = float(wanted.abs().max())
    torch.testing.assert_close(got / scale, wanted / scale, rtol=2e-2, atol=2e-2)


def test_autocast_leaves_complex_products_as_they_are():
    pair = Pair(SELECTIONS["rows in any order"](), dtype=torch.complex64)
    with torch.autocast("cpu", torch.bfloat16):
        check(pair, PRODUCTS["x @ w.T"], x_of(torch.complex64))


def test_a_model_under_autocast_keeps_no_copy_of_its_weight_once_the_backward_is_done():
    pair = Pair(SELECTIONS["entries"](), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = x_of(torch.float32).requires_grad_() @ pair.weight.T
    out.sum().backward()
    held = [each for each in gc.get_objects() if type(each) is torch.Tensor and each.dtype == torch.bfloat16]
    assert not [each for each in held if each.numel() == V * D]


@ROWS_AND_ENTRIES
def test_several_gradients_at_once_are_those_of_a_plain_product(select):
    pair, x = Pair(select()), x_of().requires_grad_()
    for name in ("x @ w.T", "linear", "einsum that swaps square ones", "addmm"):
        upstream, results = None, []
        for weight, leaf in pair.both():
            out = PRODUCTS[name](weight, x)
            upstream = torch.randn(3, *out.shape, dtype=torch.float64) if upstream is None else upstream
            results.append(torch.autograd.grad(out, [leaf, x], upstream, is_grads_batched=True))
        for index in range(3):
            pair.close(results[0][0][index], pair.masked(results[1][0][index]))
        pair.close(results[0][1], results[1][1])


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by torch, at the first use of forward mode
@ROWS_AND_ENTRIES
def test_forward_mode_and_torch_func_run_a_product_with_a_held_weight(select):
    pair, x, results = Pair(select()), x_of(), []
    for weight, _ in pair.both():
        for name in ("x @ w.T", "linear", "einsum"):
            product = PRODUCTS[name]
            with forward_ad.dual_level():
                tangent = forward_ad.unpack_dual(product(weight, forward_ad.make_dual(x, torch.ones_like(x)))).tangent
            gradient = torch.func.grad(lambda each, w=weight, product=product: product(w, each).sum())(x)
            batched = torch.vmap(lambda each, w=weight: each @ w.T)(x)
            results.extend((tangent.detach(), gradient.detach(), batched.detach()))
    for mine, theirs in zip(results[:9], results[9:], strict=True):
        pair.close(mine, theirs.view(mine.shape))


@ROWS_AND_ENTRIES
@pytest.mark.parametrize("use", [PRODUCTS["x @ w.T"], PRODUCTS["einsum the other way"]])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_step_between_forward_and_backward_gives_old_gradients_or_raises(use, create_graph, autocast, select):
    pair = Pair(select(), dtype=torch.float32)
    for used in (False, True):
        x = x_of(torch.float32).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = use(pair.weight, x)
            (wanted,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
        with torch.no_grad():
            pair.learned.add_(1)
            if used:
                pair.weight.sum()
        try:
            (got,) = torch.autograd.grad(out.sum(), x, create_graph=create_graph)
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
        else:
            assert torch.equal(got, wanted)
            assert not used or autocast


def test_a_weight_may_be_written_to_before_a_backward_that_does_not_need_it():
    pair = Pair(SELECTIONS["rows in any order"]())
    for weight, leaf in pair.both():
        out = x_of() @ weight.T
        with torch.no_grad():
            weight.mul_(2)
        out.sum().backward()
        assert leaf.grad.abs().sum() > 0
    pair.close(pair.learned.grad, pair.masked(pair.plain.grad))


@pytest.mark.parametrize(
    "use",
    [
        lambda w, x: torch.mm(x.view(4, -1, D), w.T),
        lambda w, x: torch.bmm(x, w.T),
        lambda w, x: torch.matmul(torch.tensor(2.0), w),
        lambda w, x: x @ w,
        lambda w, x: torch.einsum("bd,vd->bw", x, w),
        lambda w, x: torch.einsum("bde,vd->bv", x, w),
        lambda w, x: torch.addmm(torch.ones(V), x[0], w.T),
        lambda w, x: F.linear(x[:, :-1], w),
        lambda w, x: F.linear(x, w, torch.ones(V + 1)),
    ],
)
def test_a_product_that_cannot_be_raises_what_torch_raises(use):
    for select in (SELECTIONS["rows in any order"], SELECTIONS["entries"]):
        for weight, _ in Pair(select(), dtype=torch.float32).both():
            with pytest.raises(RuntimeError):
                use(weight, x_of(torch.float32))


def test_a_product_may_be_written_to_a_tensor_that_is_given():
    pair, x = Pair(SELECTIONS["rows in any order"]()), x_of()
    with torch.no_grad():
        for function in (torch.mm, torch.matmul):
            out = torch.empty(400, V, dtype=torch.float64)
            function(x, pair.weight.T, out=out)
            assert torch.equal(out, x @ pair.plain.T)


@ROWS_AND_ENTRIES
def test_an_empty_batch_gives_zeros(select):
    pair = Pair(select())
    for use in (PRODUCTS["x @ w.T"], F.linear, PRODUCTS["einsum"]):
        (use(x_of()[:0], pair.weight) if use is F.linear else use(pair.weight, x_of()[:0])).sum().backward()
    assert not pair.learned.grad.any()


def test_an_infinite_input_gives_entries_what_it_gives_a_plain_weight():
    pair, x = Pair(fl.entries(ENTRIES)), x_of()
    x[3, 4], upstream = float("inf"), torch.ones(400, V, dtype=torch.float64)
    upstream[0, 0] = float("nan")
    results = [torch.autograd.grad(F.linear(x, weight), leaf, upstream)[0] for weight, leaf in pair.both()]
    torch.testing.assert_close(results[0], pair.masked(results[1]), equal_nan=True)
    assert results[0].isnan().any()
    assert results[0].isfinite().any()


@pytest.mark.parametrize("share", [0.0001, 0.1, 0.14, 0.2, 1.0])
def test_few_and_many_entries_give_the_masked_gradient(share):
    mask = torch.rand(V, D, generator=torch.Generator().manual_seed(2)) < share
    mask[5, 5] = True
    check(Pair(fl.entries(mask)), PRODUCTS["linear"], x_of())


@pytest.mark.parametrize("reentrant", [True, False])
@ROWS_AND_ENTRIES
def test_checkpointed_and_offloaded_products_give_the_masked_gradient(select, reentrant):
    pair = Pair(select())
    x = x_of().requires_grad_()
    for weight, _ in pair.both():
        checkpoint(lambda x, w=weight: (x @ w.T).tanh() @ w, x, use_reentrant=reentrant).sum().backward()
        with torch.autograd.graph.save_on_cpu():
            out = F.linear(x, weight).tanh()
        out.sum().backward()
    pair.close(pair.learned.grad, pair.masked(pair.plain.grad))


def test_float32_may_learn_in_a_bfloat16_product():
    pair = Pair(fl.entries(ENTRIES), dtype=torch.bfloat16)
    pair.learned.data = pair.learned.data.float()
    x = x_of(torch.bfloat16)
    for weight, _ in pair.both():
        F.linear(x, weight).sum().backward()
    assert pair.learned.grad.dtype == torch.float32
    pair.close(pair.learned.grad, pair.masked(pair.plain.grad).float())


@ROWS_AND_ENTRIES
def test_a_step_with_products_frees_its_input(select):
    pair = Pair(select())
    inputs = []
    gc.collect()
    gc.disable()
    try:
        for create_graph in (False, True):
            x = x_of().requires_grad_()
            out = (x @ pair.weight.T).sum() + F.linear(x, pair.weight).sum()
            torch.autograd.grad(out, [pair.learned, x], create_graph=create_graph)
            inputs.append(weakref.ref(x))
            del x
            if not create_graph:
                assert inputs[0]() is not None  # as long as `out` has a graph that names its input
            del out
        assert [each() for each in inputs] == [None, None]
    finally:
        gc.enable()


def test_a_product_on_the_meta_device_has_its_shape_and_a_gradient():
    module = nn.Module()
    module.weight = nn.Parameter(torch.randn(V, D, device="meta"))
    fl.train_only(module, {"weight": fl.rows([5, 3])})
    x = torch.randn(4, D, device="meta")
    out = x @ module.weight.T
    (out.sum() + module.weight[5].sum() + module.weight[torch.tensor([1, 5], device="meta")].sum()).backward()
    assert (out.shape, module.weight_learned.grad.shape) == ((4, V), (2, D))
