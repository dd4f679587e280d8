"""Gradients of a partly learning weight are those of a plain one, masked, however they are asked for."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import frostline as fl

ROWS, MASK = [1, 3], torch.arange(24).view(6, 4) % 5 == 0
LEARNS = torch.zeros(6, 4, dtype=torch.bool).index_fill(0, torch.tensor(ROWS), True)
KINDS = {"rows": (fl.rows(ROWS), LEARNS), "entries": (fl.entries(MASK), MASK)}
EACH_KIND = pytest.mark.parametrize(("selection", "learns"), KINDS.values(), ids=KINDS.keys())
IDS = torch.tensor([0, 1, 1, 5])


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        return x @ self.weight.T


def pair(selection, make=Plain, dtype=torch.float64):
    """A plain model, and a partial copy; its learned part has moved once, and so has the plain one."""
    torch.manual_seed(0)
    plain = make()
    plain.weight = nn.Parameter(torch.randn(6, 4, dtype=dtype))
    partial = copy.deepcopy(plain)
    fl.train_only(partial, {"weight": selection})
    with torch.no_grad():
        partial.weight_learned += 0.25
        plain.weight.copy_(partial.state_dict()["weight"])
    return plain, partial


def assert_masked(partial, full, learns):
    """The gradient of the learned part is `full` at what learns."""
    assert full[learns].abs().sum() > 0
    torch.testing.assert_close(partial.weight_learned.grad.view(-1), full[learns], rtol=1e-9, atol=1e-12)


def x64(*shape):
    return torch.linspace(-1, 1, 12, dtype=torch.float64).view(*shape)


USES = {
    "a product": lambda m: m(x64(3, 4)).square().sum(),
    "a function of w": lambda m: (m.weight**3).sum() + m.weight.norm(),
    "views": lambda m: m.weight.t().square().sum() + (m.weight[1] * m.weight[1:3]).sum(),
    "strides": lambda m: m.weight.as_strided((3, 4), (8, 1)).square().sum() + m.weight.unfold(0, 3, 1).exp().sum(),
    "rows one by one": lambda m: sum((row**2).sum() for row in m.weight) + m.weight[m.weight > 0].sum(),
    "a lookup": lambda m: F.embedding(IDS, m.weight).square().sum(),
    "a lookup of a view": lambda m: F.embedding(IDS, m.weight.view(6, 4)).square().sum(),
    "linear": lambda m: F.linear(x64(3, 4), m.weight).tanh().sum(),
    "linear of itself": lambda m: F.linear(m.weight, m.weight).tanh().sum(),
    "a lookup, a head and a norm": lambda m: (
        F.linear(F.embedding(IDS, m.weight), m.weight).tanh().sum() + m.weight.square().sum()
    ),
    "a bag": lambda m: F.embedding_bag(IDS[None], m.weight).exp().sum(),
    "beside its detached self": lambda m: (m.weight * m.weight.detach()).sum() + (m.weight - m.weight.data).sum(),
    "attention": lambda m: F.scaled_dot_product_attention(*[m.weight[None]] * 3).square().sum(),
    "convolution": lambda m: F.conv1d(x64(1, 4, 3), m.weight[..., None]).square().sum(),
    "sorted": lambda m: m.weight.sort(0).values.cumsum(0).square().sum() + m.weight.topk(2, 0).values.sum(),
    "solved": lambda m: torch.linalg.pinv(m.weight).sum() + torch.linalg.svdvals(m.weight).sum(),
    "another dtype": lambda m: m.weight.to(torch.float32).double().square().sum(),
    "checkpointed": lambda m: checkpoint(lambda w: w.pow(3).sum(), m.weight, use_reentrant=False),
    "checkpointed again": lambda m: checkpoint(lambda w: w.pow(3).sum(), m.weight, use_reentrant=True),
    "a clone written to": lambda m: m.weight.clone().mul_(2).relu_().sum(),
}


@EACH_KIND
@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_backward_gives_the_gradient_of_a_plain_weight(use, selection, learns):
    plain, partial = pair(selection)
    losses = [use(model) for model in (plain, partial)]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)
    for loss in losses:
        loss.backward()
    assert_masked(partial, plain.weight.grad, learns)


@EACH_KIND
@pytest.mark.parametrize("use", [pytest.param(u, id=n) for n, u in USES.items() if n != "checkpointed again"])
def test_autograd_grad_of_the_weight_is_that_of_a_plain_one_where_it_learns(use, selection, learns):
    plain, partial = pair(selection)
    (full,) = torch.autograd.grad(use(plain), [plain.weight])
    weight = partial.weight
    (gradient,) = torch.autograd.grad(use(partial), [weight])
    assert gradient.shape == full.shape
    assert full[learns].abs().sum() > 0
    torch.testing.assert_close(gradient[learns], full[learns], rtol=1e-9, atol=1e-12)
    assert partial.weight_learned.grad is None
    (through_part,) = torch.autograd.grad(use(partial), [partial.weight_learned])
    torch.testing.assert_close(through_part.view(-1), full[learns], rtol=1e-9, atol=1e-12)


@EACH_KIND
def test_autograd_grad_takes_the_weight_among_others_and_says_what_is_unused(selection, learns):
    plain, partial = pair(selection)
    x = x64(3, 4).requires_grad_()
    of_plain = torch.autograd.grad(plain(x).tanh().sum(), (x, plain.weight))
    of_partial = torch.autograd.grad(partial(x).tanh().sum(), (x, partial.weight))
    torch.testing.assert_close(of_plain[0], of_partial[0])
    torch.testing.assert_close(of_plain[1][learns], of_partial[1][learns])
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad((x * 2).sum(), [partial.weight])
    assert torch.autograd.grad((x * 2).sum(), [partial.weight], allow_unused=True) == (None,)
    given = torch.linspace(1, 2, 18, dtype=torch.float64).view(3, 6)
    (of_plain,) = torch.autograd.grad(plain(x), plain.weight, grad_outputs=given)
    (of_partial,) = torch.autograd.grad(partial(x), partial.weight, grad_outputs=given)
    torch.testing.assert_close(of_plain[learns], of_partial[learns])


@EACH_KIND
def test_a_penalty_on_a_gradient_is_that_of_a_plain_weight(selection, learns):
    plain, partial = pair(selection)
    for model in (plain, partial):
        x = x64(3, 4).requires_grad_()
        (gradient,) = torch.autograd.grad(model(x).tanh().sum(), [x], create_graph=True)
        gradient.square().sum().backward()
    assert_masked(partial, plain.weight.grad, learns)


@EACH_KIND
@pytest.mark.parametrize("make", [Plain, lambda: nn.Linear(4, 6, bias=False)])
def test_a_penalty_on_the_gradient_of_what_learns_is_that_of_a_plain_weight(make, selection, learns):
    plain, partial = pair(selection, make)
    x = x64(3, 4)
    (gradient,) = torch.autograd.grad(plain(x).tanh().sum(), [plain.weight], create_graph=True)
    gradient[learns].square().sum().backward()
    (gradient,) = torch.autograd.grad(partial(x).tanh().sum(), [partial.weight_learned], create_graph=True)
    gradient.square().sum().backward()
    assert_masked(partial, plain.weight.grad, learns)


@EACH_KIND
@pytest.mark.parametrize("use", ["a product", "a function of w", "linear", "a lookup, a head and a norm"])
def test_a_penalty_on_the_gradient_of_the_weight_is_that_of_a_plain_one(use, selection, learns):
    plain, partial = pair(selection)
    for model in (plain, partial):
        (gradient,) = torch.autograd.grad(USES[use](model), [model.weight], create_graph=True)
        gradient[learns].square().sum().backward()
    assert_masked(partial, plain.weight.grad, learns)


@EACH_KIND
def test_backward_to_the_weight_alone_raises_before_anything_is_lost(selection, learns):
    _, partial = pair(selection)
    weight = partial.weight
    optimizer = torch.optim.SGD([partial.weight_learned], lr=0.1)
    before = partial.state_dict()["weight"].clone()
    weight.square().sum().backward(inputs=[weight])
    for ask in (lambda: weight.grad, optimizer.step):
        with pytest.raises(fl.PartialTensorError, match=r"Pass its learned part: weight\.learned"):
            ask()
    assert torch.equal(partial.state_dict()["weight"], before)
    partial.weight_learned.grad = None
    loss = partial(x64(3, 4)).square().sum()
    loss.backward(inputs=[partial.weight.learned])
    assert partial.weight_learned.grad.abs().sum() > 0


VIEWS = {
    "turned": lambda w: w.t(),
    "row": lambda w: w[1],
    "flat": lambda w: w.view(-1),
    "slice": lambda w: w[:, 1:],
    "chunk": lambda w: w.chunk(2)[0],
    "computed": lambda w: w * 1,
}


@EACH_KIND
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_hooks_on_a_view_run_and_may_change_its_gradient(view, selection, learns):
    plain, partial = pair(selection)
    seen = []
    for model in (plain, partial):
        part = view(model.weight)
        part.retain_grad()
        part.register_hook(lambda gradient: seen.append(gradient.clone()) or 3 * gradient)
        (part.square().sum() + model.weight.sum()).backward()
        seen.append(part.grad)
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert_masked(partial, plain.weight.grad, learns)


class FusedLoss(torch.autograd.Function):
    """A function that takes the weight itself, keeps it for the backward, and computes the gradients by hand."""

    @staticmethod
    def forward(ctx, h, w):
        ctx.save_for_backward(h, w)
        return (h @ w.t()).logsumexp(-1).sum()

    @staticmethod
    def backward(ctx, g):
        h, w = ctx.saved_tensors
        p = (h @ w.t()).softmax(-1)
        return g * (p @ w), g * (p.t() @ h)


class InChunks(torch.autograd.Function):
    """A function that computes its gradients in the forward, into a buffer made like the weight."""

    @staticmethod
    def forward(ctx, h, w):
        into, of_h, loss = torch.zeros_like(w), torch.zeros_like(h), 0.0
        for i in range(len(h)):
            p = (w @ h[i]).softmax(0)
            loss = loss + (w @ h[i]).logsumexp(0)
            into += p[:, None] * h[i]
            of_h[i] = p @ w
        ctx.save_for_backward(of_h, into)
        return loss

    @staticmethod
    def backward(ctx, g):
        of_h, into = ctx.saved_tensors
        return g * of_h, g * into


FUNCTIONS = {
    "fused": FusedLoss.apply,
    "in chunks": InChunks.apply,
    "in a checkpoint": lambda h, w: checkpoint(FusedLoss.apply, h, w, use_reentrant=False),
    "in a reentrant checkpoint": lambda h, w: checkpoint(FusedLoss.apply, h, w, use_reentrant=True),
    "of a view": lambda h, w: FusedLoss.apply(h, w.view(6, 4)),
    "of a clone": lambda h, w: FusedLoss.apply(h, w.clone()),
    "twice": lambda h, w: FusedLoss.apply(h, w) + InChunks.apply(h, w),
}
OWNERS = {
    "a plain parameter": Plain,
    "a head": lambda: nn.Linear(4, 6, bias=False),
    "a table": lambda: nn.Embedding(6, 4),
}


@EACH_KIND
@pytest.mark.parametrize("make", OWNERS.values(), ids=OWNERS.keys())
@pytest.mark.parametrize("apply", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_a_function_that_takes_the_weight_trains_it_and_evaluates_it_as_it_is_now(apply, make, selection, learns):
    plain, partial = pair(selection, make)
    optimizers = [torch.optim.SGD([p], lr=0.1) for p in (plain.weight, partial.weight_learned)]
    start = partial.state_dict()["weight"].clone()
    h = x64(3, 4)
    for _ in range(3):
        losses = []
        for model, optimizer in zip((plain, partial), optimizers, strict=True):
            optimizer.zero_grad()
            inputs = h.clone().requires_grad_()
            losses.append(apply(inputs, model.weight))
            losses[-1].backward()
            losses.append(inputs.grad)
        torch.testing.assert_close(losses[:2], losses[2:])
        assert_masked(partial, plain.weight.grad, learns)
        plain.weight.grad[~learns] = 0
        for optimizer in optimizers:
            optimizer.step()
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                torch.testing.assert_close(apply(h, plain.weight), apply(h, partial.weight), rtol=1e-12, atol=1e-12)
    moved = partial.state_dict()["weight"] != start
    assert torch.equal(moved, learns)


def test_a_backward_after_a_step_raises_as_that_of_a_plain_weight_does():
    for model in pair(fl.rows(ROWS)):
        learned = getattr(model, "weight_learned", model.weight)
        x = x64(3, 4).requires_grad_()
        learned.grad = torch.ones_like(learned)
        loss = model(x).square().sum()
        torch.optim.SGD([learned], lr=0.1).step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("between", ["nothing", "a state dict", "an evaluation", "a detached look"])
def test_what_only_reads_between_forward_and_backward_does_no_harm(between):
    plain, partial = pair(fl.rows(ROWS))
    for model in (plain, partial):
        loss = model(x64(3, 4)).square().sum() + FusedLoss.apply(x64(3, 4), model.weight)
        if between == "a state dict":
            model.state_dict()
        elif between == "an evaluation":
            with torch.inference_mode():
                model(x64(3, 4))
        elif between == "a detached look":
            assert model.weight.detach().numpy().sum() != 0
        loss.backward()
    assert_masked(partial, plain.weight.grad, LEARNS)


@pytest.mark.parametrize("kind", ["rows", "entries"])
@pytest.mark.parametrize("make", OWNERS.values(), ids=OWNERS.keys())
def test_a_float32_part_over_a_bfloat16_tensor_gets_a_float32_gradient(make, kind):
    torch.manual_seed(0)
    plain = make().bfloat16()
    partial, learns = copy.deepcopy(plain), KINDS[kind][1]
    selection = fl.rows(ROWS, dtype=torch.float32) if kind == "rows" else fl.entries(MASK, dtype=torch.float32)
    fl.train_only(partial, {"weight": selection})
    h = x64(3, 4).bfloat16()
    for model in (plain, partial):
        (FusedLoss.apply(h, model.weight) + (model.weight.float() ** 2).sum()).backward()
    gradient = partial.weight_learned.grad
    assert gradient.dtype == torch.float32
    assert torch.equal(gradient.view(-1), plain.weight.grad[learns].float())
    assert gradient.abs().sum() > 0


@EACH_KIND
@pytest.mark.parametrize("make", [Plain, lambda: nn.Linear(4, 6, bias=False)])
def test_gradients_of_a_complex_weight_are_those_of_a_plain_one(make, selection, learns):
    plain, partial = pair(selection, make, torch.complex128)
    x = torch.complex(x64(3, 4), x64(4, 3).t())
    for model in (plain, partial):
        w = model.weight
        (model(x).abs().sum() + w.imag.pow(2).sum() + (w.mH @ w).real.sum() + torch.view_as_real(w)[1].sum()).backward()
    assert plain.weight.grad[learns].abs().sum() > 0
    torch.testing.assert_close(partial.weight_learned.grad.view(-1), plain.weight.grad[learns])


@EACH_KIND
def test_accumulated_gradients_and_several_weights_taken_at_once_add_up(selection, learns):
    plain, partial = pair(selection)
    for model in (plain, partial):
        first, second = model.weight, model.weight
        for scale in (1.0, 2.0):
            (first.square().sum() * scale + (second @ first.t()).sum() + model(x64(3, 4)).sum()).backward()
    assert_masked(partial, plain.weight.grad, learns)
