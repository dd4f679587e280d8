"""Views of a partial tensor have the bits of a plain tensor's, and their gradient goes straight to what learns."""

import copy
import gc
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import frostline as fl
from frostline.errors import PartialTensorError

from .cases import EACH_DTYPE, EACH_SELECTION, ROWS_AND_ENTRIES, SELECTIONS, D, Pair, V

VIEWS = {
    "a row that learns": lambda w: w[5],
    "from the end": lambda w: w[-V + 5],
    "a scalar tensor": lambda w: w[torch.tensor(5)],
    "a slice": lambda w: w[2:50],
    "every second row": lambda w: w[1:101:2],
    "a column": lambda w: w[:, 21],
    "columns": lambda w: w[:, 3:70],
    "a part": lambda w: w[4:60, 3:70],
    "transposed": lambda w: w.T,
    "a column of that": lambda w: w.mT[21],
    "flat": lambda w: w.view(-1)[5 * D - 8 : 5 * D + 30],
    "in other rows": lambda w: w.view(V // 2, -1)[2],
    "in four dimensions": lambda w: w.view(8, 16, 2, -1).permute(3, 0, 2, 1)[4],
    "pieces": lambda w: torch.cat(w.split(30)[:1]),
    "chunks": lambda w: w.chunk(3)[0],
    "unbound": lambda w: torch.stack(w.unbind(1)),
    "one by one": lambda w: torch.stack([row * 2 for row in w]),
    "a diagonal": lambda w: w[:60].diagonal(-2),
    "with dimensions of size one": lambda w: w[None, 5, None],
    "an ellipsis": lambda w: w[..., 21],
    "narrowed": lambda w: w.narrow(0, 4, 3),
    "squeezed": lambda w: w[5:6].squeeze(0),
    "unflattened": lambda w: w.unflatten(0, (8, -1)).movedim(1, 0),
    "a view of a view of a view": lambda w: w[2:50].T[3:70][:, 1:4],
    # whose elements are the same ones, or that autograd must make
    "expanded": lambda w: w[5].expand(3, -1),
    "expanded, then transposed": lambda w: w[5].expand(3, -1).t(),
    "expanded, then a part": lambda w: w.expand(3, V, D)[:, 5],
    "windows": lambda w: w.unfold(0, 3, 1).transpose(0, 1),
    "strides, then a slice": lambda w: w.as_strided((6, D), (D // 2, 1), 5 * D)[1:],
    "a mask": lambda w: w[torch.arange(V) < 7],
    "a list": lambda w: w[[5, 1, 5]],
}
EXPERTS = {
    "an expert": lambda w: w[4],
    "transposed experts": lambda w: w.transpose(1, 2)[1:5],
    "a row of each": lambda w: w[:, 2],
    "a column of each": lambda w: w[..., 2],
    "flat": lambda w: w.flatten(0, 1)[30:140],
    "unbound": lambda w: torch.stack(w.unbind(2)[:3]),
}


def used(view):
    return lambda w: view(w) * 2


@EACH_SELECTION
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_a_view_gives_what_learns_the_masked_gradient(view, select):
    Pair(select()).check(used(view))


@ROWS_AND_ENTRIES
@EACH_DTYPE
@pytest.mark.parametrize("name", ["a row that learns", "columns", "transposed", "flat", "expanded, then transposed"])
def test_a_view_of_any_dtype_does(name, dtype, select):
    Pair(select(), dtype=dtype).check(used(VIEWS[name]))


@pytest.mark.parametrize(
    "selection", [fl.rows([4, 1]), fl.entries(torch.arange(6 * 32 * 48).view(6, 32, 48) % 31 == 1)]
)
@pytest.mark.parametrize("view", EXPERTS.values(), ids=EXPERTS.keys())
def test_views_in_three_dimensions_do(view, selection):
    Pair(selection, (6, 32, 48)).check(used(view))


@pytest.mark.parametrize("shape", [(12,), (12, 2, 3, 2)])
def test_views_in_one_and_in_four_dimensions_do(shape):
    pair = Pair(fl.rows([7, 2]), shape)
    pair.check(lambda w: w[7] * 2)
    pair.check(lambda w: w[1:9:2] * 2)
    pair.check(lambda w: w.flatten()[2:] * 2)


@ROWS_AND_ENTRIES
def test_views_of_memory_with_gaps_do(select):
    pair = Pair(select())
    module = nn.Module()
    module.weight = nn.Parameter(pair.plain.detach().T.contiguous().T)
    fl.train_only(module, {"weight": select()})
    pair.module = module
    assert not module.weight.is_contiguous()
    pair.check(lambda w: w[5] * 2)
    pair.check(lambda w: w[2:50].T * 2)


def test_a_zero_size_view_takes_part_with_zeros():
    pair = Pair(SELECTIONS["rows in any order"]())
    (pair.weight[3:3].sum() + pair.weight[:, 5:5].sum()).backward()
    assert torch.equal(pair.learned.grad, torch.zeros(3, D))
    empty = Pair(fl.rows([1]), (3, 0, 2))
    empty.weight[1].sum().backward()
    assert empty.learned.grad.shape == (1, 0, 2)


def test_what_learns_gets_zeros_where_only_frozen_rows_are_used_and_an_optimizer_moves_it_as_a_masked_gradient_does():
    for through_an_input in (False, True):
        pair = Pair(SELECTIONS["rows in any order"]())
        optimizers = [torch.optim.AdamW([leaf], 0.1) for _, leaf in pair.both()]
        for row in (5, 7, 7):
            for (weight, _), optimizer in zip(pair.both(), optimizers, strict=True):
                optimizer.zero_grad()
                x = torch.ones(D, dtype=torch.float64, requires_grad=through_an_input)
                ((weight[row] * x) ** 2).sum().backward()
                optimizer.step()
        pair.close(pair.learned, pair.masked(pair.plain))


def test_a_view_in_which_nothing_learns_says_of_itself_what_a_plain_one_does():
    pair = Pair(SELECTIONS["rows in any order"]())
    for weight, _ in pair.both():
        frozen = weight[7]
        assert frozen.requires_grad
        assert not frozen.is_leaf
        assert frozen.grad_fn is not None
        for made in (torch.zeros_like(frozen), frozen.new_zeros(3), torch.ones(D).expand_as(frozen)):
            assert not made.requires_grad
        assert not torch.ones(D, dtype=torch.float64).to(frozen).requires_grad
        assert (frozen * torch.ones(D)).requires_grad
        assert not frozen.detach().requires_grad
    flat = Pair(fl.rows([1]), (6,))
    flat.weight[3].backward()
    assert torch.equal(flat.learned.grad, torch.zeros(1))


@pytest.mark.parametrize("take", [lambda w: w.detach(), lambda w: w.data, lambda w: w.detach().view(-1).view(V, D)])
@pytest.mark.parametrize("use", [lambda v: v[5], lambda v: v.T, lambda v: torch.ones(4, V, dtype=v.dtype) @ v])
def test_a_detached_view_that_learns_on_its_own_gets_its_gradient(take, use):
    pair = Pair(SELECTIONS["rows in any order"]())
    leaf = take(pair.weight).requires_grad_()
    use(leaf).sum().backward()
    wanted = pair.plain.detach().requires_grad_()
    use(wanted).sum().backward()
    assert torch.equal(leaf.grad, wanted.grad)
    assert pair.learned.grad is None


@pytest.mark.parametrize("row", [5, 7])
def test_hooks_and_retained_gradients_of_a_view_see_what_a_plain_one_gets(row):
    pair = Pair(SELECTIONS["rows in any order"]())
    seen = []
    for weight, _ in pair.both():
        hooked, kept, wanted = weight[row], weight[row], weight[row]
        hooked.register_hook(lambda gradient: seen.append(gradient) or gradient * 2)
        kept.retain_grad()
        ((hooked**2).sum() + (kept**3).sum()).backward()
        seen.append(kept.grad)
        wanted.retain_grad()
        seen.extend(torch.autograd.grad((wanted**2).sum(), wanted))
    for mine, theirs in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(mine, theirs)
    pair.close(pair.learned.grad, pair.masked(pair.plain.grad))
    assert (pair.learned.grad.abs().sum() > 0) == (row == 5)


def test_asking_for_the_gradient_of_a_view_after_it_was_passed_by_is_refused():
    pair = Pair(SELECTIONS["rows in any order"]())
    for ask in (
        lambda view, loss: view.retain_grad(),
        lambda view, loss: view.register_hook(print),
        lambda view, loss: torch.autograd.grad(loss, view),
        lambda view, loss: (loss.backward(inputs=[view]), view.grad),
    ):
        view = pair.weight[2:50]
        loss = (view[3] * 2).sum()
        with pytest.raises(PartialTensorError, match="before it is used"):
            ask(view, loss)


@ROWS_AND_ENTRIES
def test_the_gradient_of_a_gradient_through_views_is_the_plain_ones(select):
    pair = Pair(select())
    results = []
    for weight, leaf in pair.both():
        x = torch.linspace(-1, 1, D, dtype=torch.float64, requires_grad=True)
        loss = ((weight[2:50] * x).tanh() ** 2).sum() + (weight[7] * x).sum() ** 2
        first, for_x = torch.autograd.grad(loss, [leaf, x], create_graph=True)
        first = first if leaf is pair.learned else pair.masked(first)
        second, for_x2 = torch.autograd.grad((first**2).sum() + (for_x**2).sum(), [leaf, x])
        results.append((first, for_x, second if leaf is pair.learned else pair.masked(second), for_x2))
    for mine, theirs in zip(*results, strict=True):
        pair.close(mine, theirs)


def test_several_gradients_at_once_are_those_of_a_plain_view():
    pair = Pair(SELECTIONS["entries"]())
    for view in ("a slice", "a column", "transposed"):
        (mine, learned), (theirs, leaf) = pair.both()
        mine, theirs = VIEWS[view](mine) * 2, VIEWS[view](theirs) * 2
        upstream = torch.randn(3, *theirs.shape, dtype=torch.float64)
        (got,) = torch.autograd.grad(mine, learned, upstream, is_grads_batched=True)
        (dense,) = torch.autograd.grad(theirs, leaf, upstream, is_grads_batched=True)
        for index in range(3):
            pair.close(got[index], pair.masked(dense[index]))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by torch, at the first use of forward mode
def test_forward_mode_and_torch_func_use_a_held_view():
    pair = Pair(SELECTIONS["rows in any order"]())
    x = torch.randn(4, D, dtype=torch.float64)
    results = []
    for weight, _ in pair.both():
        for row in (5, 7):
            view = weight[row]
            with forward_ad.dual_level():
                tangent = forward_ad.unpack_dual(forward_ad.make_dual(x, torch.ones_like(x)) * view).tangent
            batched = torch.vmap(lambda each, view=view: each * view)(x)
            gradient = torch.func.grad(lambda each, view=view: (each * view).sum())(x)
            results.append(torch.cat([tangent, batched, gradient]).detach())
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[3])


@pytest.mark.parametrize("reentrant", [True, False])
def test_views_in_a_checkpointed_function_give_the_masked_gradient(reentrant):
    pair = Pair(SELECTIONS["rows in any order"]())
    x = torch.randn(D, dtype=torch.float64, requires_grad=True)
    for weight, _ in pair.both():
        checkpoint(lambda x, w=weight: ((x * w[5]).tanh() + w[7] * w[3]).sum(), x, use_reentrant=reentrant).backward()
    pair.close(pair.learned.grad, pair.masked(pair.plain.grad))
    assert (pair.learned.grad.abs().sum(1) > 0).tolist() == [False, True, True]


def test_views_without_a_graph_have_the_bits_of_plain_ones():
    pair = Pair(SELECTIONS["entries"]())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for view in VIEWS.values():
                mine, theirs = view(pair.weight), view(pair.plain)
                assert torch.equal(mine, theirs)
                assert mine.requires_grad == theirs.requires_grad
    pair.check(lambda w: w[2:50] * 2)


def test_a_write_through_a_view_reaches_both_parts():
    pair = Pair(SELECTIONS["rows in any order"]())
    for weight, _ in pair.both():
        learns, frozen, turned, flat = weight[5], weight[7], weight.T, weight.view(-1)
        (learns * frozen).sum()
        with torch.no_grad():
            learns.add_(1)
            frozen.mul_(2)
            turned[0] = 3
            flat[5 * D + 3] = 9
    assert torch.equal(pair.module.state_dict()["weight"], pair.plain.detach())
    assert torch.equal(pair.learned, pair.masked(pair.plain))
    pair.check(lambda w: w[5] * w[3])


@pytest.mark.parametrize("use", [lambda w, x: w[5] * w[5], lambda w, x: w.T[3] ** 2, lambda w, x: x * w[7]])
def test_a_write_between_forward_and_backward_raises_as_for_a_plain_tensor(use):
    pair = Pair(SELECTIONS["rows in any order"]())
    for weight, leaf in pair.both():
        loss = use(weight, torch.ones(D, dtype=torch.float64, requires_grad=True)).sum()
        with torch.no_grad():
            leaf.add_(1)
            weight.sum()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_views_follow_uncounted_writes_to_what_learns():
    pair = Pair(SELECTIONS["rows in any order"]())
    for step, write in enumerate(
        (
            lambda leaf: leaf.data.add_(1),
            lambda leaf: leaf.detach().numpy().__iadd__(1),
            lambda leaf: torch.optim.SGD([leaf], 0.1, fused=True).step(),
        )
    ):
        pair.learned.grad = torch.ones_like(pair.learned)
        before = pair.weight[5].detach().clone()
        write(pair.learned)
        assert not torch.equal(pair.weight[5], before), step
        assert torch.equal(pair.weight[5], pair.learned[1])
        assert torch.equal(pair.weight.T[:, 100], pair.learned[0])
        assert torch.equal(pair.weight[7], pair.plain[7])


def test_a_copy_of_a_view_is_a_plain_tensor_and_a_copied_module_has_views_of_its_own():
    pair = Pair(SELECTIONS["rows in any order"]())
    for row in (5, 7):
        view = pair.weight[row]
        for copied in (copy.deepcopy(view), pickle.loads(pickle.dumps(view))):
            assert type(copied) is torch.Tensor
            assert torch.equal(copied, view)
    twin = copy.deepcopy(pair.module)
    ((twin.weight[5] * 2).sum() + (twin.weight[7] * 2).sum()).backward()
    assert pair.learned.grad is None
    assert torch.equal(twin.weight_learned.grad[1], torch.full((D,), 2.0, dtype=torch.float64))


def test_what_learned_and_is_frozen_now_gives_views_without_a_graph():
    pair = Pair(SELECTIONS["rows in any order"]())
    pair.learned.requires_grad_(False)
    for row in (5, 7):
        assert not pair.weight[row].requires_grad
        assert not (pair.weight[row] * 2).requires_grad
    pair.learned.requires_grad_(True)
    pair.check(lambda w: w[5] * w[7])
    pair.check(lambda w: w[7] * 2, moves=False)


def test_after_a_conversion_views_show_the_new_memory_and_old_ones_are_refused():
    pair = Pair(SELECTIONS["rows in any order"](), dtype=torch.float32)
    old = pair.weight[5]
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.bfloat16, torch.float32):
        pair.module.to(dtype)
        assert torch.equal(pair.weight[5], pair.learned[1])
        assert (pair.weight.dtype, pair.weight[7].dtype) == (dtype, dtype)
    with pytest.raises(PartialTensorError):
        old * 2
    pair.plain = pair.weight.detach().clone().requires_grad_()
    pair.check(lambda w: w[5] * w[7])


def test_float32_may_learn_in_views_of_a_bfloat16_table():
    pair = Pair(SELECTIONS["rows in any order"](), dtype=torch.bfloat16)
    pair.learned.data = pair.learned.data.float()
    loss = (pair.weight[5] * pair.weight.T[:, 3]).float().sum()
    loss.backward()
    assert pair.learned.grad.dtype == torch.float32
    torch.testing.assert_close(pair.learned.grad[1], pair.plain[3].float())


def test_a_step_with_views_leaves_no_cycles_and_holds_no_graph():
    pair = Pair(SELECTIONS["rows in any order"]())

    def step():
        x = torch.ones(D, dtype=torch.float64, requires_grad=True)
        ((pair.weight[5] * x).sum() + (pair.weight[7] * x).sum() + (pair.weight.T[:, :9].T * x).sum()).backward()
        pair.learned.grad = None

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


def test_threads_share_one_weight_and_its_views():
    pair = Pair(SELECTIONS["rows in any order"]())
    errors = []

    def work():
        try:
            for _ in range(100):
                assert torch.equal(pair.weight[5] * 2, pair.plain[5] * 2)
                ((pair.weight[5] * 2).sum() + (pair.weight[7] * 2).sum()).backward()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert pair.learned.grad[1].eq(800).all()
    assert not pair.learned.grad[0].any()
