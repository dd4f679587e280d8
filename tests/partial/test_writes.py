"""Any write to a partly learning weight reaches both parts, or is refused before anything has changed."""

import random

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import frostline as fl

MASK = torch.arange(24).view(6, 4) % 5 == 0
LEARNS = {"rows": torch.tensor([0, 1, 0, 1, 0, 0]).bool()[:, None].expand(6, 4), "entries": MASK}
MAKERS = {"table": lambda: nn.Embedding(6, 4), "head": lambda: nn.Linear(4, 6, bias=False)}
IDS, X = torch.arange(6), torch.linspace(-1, 1, 8).view(2, 4)


def same_draws():
    return torch.Generator().manual_seed(3)


def selection(kind):
    return fl.rows([3, 1]) if kind == "rows" else fl.entries(MASK)


def learned_of(full, kind):
    return full[[3, 1]] if kind == "rows" else full[MASK]


def partial(make, kind):
    """A module whose learned part has moved since the plan, and its whole values."""
    torch.manual_seed(0)
    module = MAKERS[make]()
    fl.train_only(module, {"weight": selection(kind)})
    with torch.no_grad():
        module.weight_learned += 0.5
    return module, module.state_dict()["weight"].clone()


WRITES = {
    # functions that write in place
    "relu_": lambda w: torch.relu_(w),
    "relu": lambda w: F.relu(w, inplace=True),
    "elu": lambda w: F.elu(w, inplace=True),
    "silu of a view": lambda w: F.silu(w[1], inplace=True),
    "mish": lambda w: F.mish(w, inplace=True),
    "hardtanh": lambda w: F.hardtanh(w, -0.1, 0.1, inplace=True),
    "threshold": lambda w: F.threshold(w, 0.0, 9.0, inplace=True),
    "leaky module": lambda w: nn.LeakyReLU(inplace=True)(w),
    "dropout": lambda w: F.dropout(w, 1.0, inplace=True),
    "clamp_": lambda w: torch.clamp_(w, -0.1, 0.1),
    "fill operator": lambda w: torch.ops.aten.fill_(w, 3.0),
    "fill operator on a view": lambda w: torch.ops.aten.select(w, 0, 1).fill_(3.0),
    "renormalize": lambda w: torch.embedding_renorm_(w, torch.tensor([1, 2]), 0.1, 2.0),
    # out=
    "out": lambda w: torch.neg(torch.ones(6, 4), out=w),
    "out into itself": lambda w: torch.add(w, 1, out=w),
    "out into a view": lambda w: torch.neg(torch.ones(4), out=w[1]),
    "out into data": lambda w: torch.clamp(w, -0.1, 0.1, out=w.data),
    "two outs": lambda w: torch.max(torch.full((6, 4, 2), 3.0), dim=2, out=(w, torch.empty(6, 4, dtype=torch.int64))),
    "stack into rows": lambda w: torch.stack([torch.ones(4), torch.zeros(4)], out=w[:2]),
    "out of an operator": lambda w: torch.ops.aten.neg.out(torch.ones(6, 4), out=w),
    # initialisation
    "trunc_normal_": lambda w: nn.init.trunc_normal_(w, generator=same_draws()),
    "orthogonal_": lambda w: nn.init.orthogonal_(w, generator=same_draws()),
    "sparse_": lambda w: nn.init.sparse_(w, 0.5, generator=same_draws()),
    "kaiming_uniform_": lambda w: nn.init.kaiming_uniform_(w, generator=same_draws()),
    "zeros_ of a row": lambda w: nn.init.zeros_(w[1]),
    "ones_ of data": lambda w: nn.init.ones_(w.data),
    "constant_ of detached": lambda w: nn.init.constant_(w.detach(), 4.0),
    "normal_": lambda w: w.normal_(generator=same_draws()),
    # indexed
    "index_add_": lambda w: w.index_add_(0, torch.tensor([1, 1]), torch.ones(2, 4)),
    "index_copy_": lambda w: w.index_copy_(0, torch.tensor([1]), torch.ones(1, 4)),
    "index_put_": lambda w: torch.index_put_(w, (torch.tensor([1]),), torch.ones(4)),
    "masked_scatter_": lambda w: w.masked_scatter_(w > 0, torch.ones(24)),
    "scatter_": lambda w: w.scatter_(0, torch.ones(1, 4, dtype=torch.int64), 7.0),
    "put_": lambda w: w.put_(torch.tensor([5]), torch.ones(1)),
    "fill_diagonal_": lambda w: w.fill_diagonal_(5.0),
    "rows swapped": lambda w: w.__setitem__([0, 1], w[[1, 0]]),
    "flipped into itself": lambda w: w.copy_(w.flip(0)),
    # operators and lists of tensors
    "+=": lambda w: w.__iadd__(1.0),
    "-= of a row": lambda w: w[1].__isub__(1.0),
    "lerp_": lambda w: w.lerp_(torch.ones(6, 4), 0.5),
    "foreach copy": lambda w: torch._foreach_copy_([w], [torch.ones(6, 4)]),
    "foreach of rows": lambda w: torch._foreach_add_([w[1], w[0]], 1.0),
    "foreach of data": lambda w: torch._foreach_zero_([w.data]),
    "from a vector": lambda w: nn.utils.vector_to_parameters(torch.arange(24.0), [w]),
    # views
    "diagonal": lambda w: w.diagonal().fill_(3.0),
    "narrow": lambda w: w.narrow(0, 1, 2).fill_(3.0),
    "strided": lambda w: w.as_strided((2, 4), (4, 1), 4).fill_(3.0),
    "unfolded": lambda w: w.unfold(0, 2, 2).fill_(3.0),
    "as integers": lambda w: w.view(torch.int32).fill_(0),
    "a row as integers": lambda w: w.detach()[1].view(torch.int32).bitwise_xor_(1),
    "reshaped": lambda w: w.reshape(4, 6).t().fill_(2.0),
    "contiguous": lambda w: w.contiguous().fill_(2.0),
    "to the same dtype": lambda w: w.to(torch.float32).fill_(2.0),
    "data of data": lambda w: w.data.data[1].fill_(2.0),
    "detached, turned, detached": lambda w: w.detach().t().detach()[:, 1].fill_(2.0),
    "real": lambda w: w.real.fill_(1.0),
    "view of a view of a view": lambda w: w.view(2, 3, 4)[0].t()[1:3].mul_(2.0),
}
EACH = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
EACH_MODULE = pytest.mark.parametrize("make", MAKERS)
EACH_KIND = pytest.mark.parametrize("kind", LEARNS)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@EACH_KIND
@EACH_MODULE
@EACH
def test_a_write_reaches_both_parts_at_once(write, make, kind, context):
    module, before = partial(make, kind)
    expected = nn.Parameter(before.clone())
    with context():
        torch.manual_seed(1)
        write(expected)
        torch.manual_seed(1)
        write(module.weight)
    expected = expected.detach().clone()
    assert not torch.equal(expected, before)
    assert torch.equal(module.weight_learned.detach(), learned_of(expected, kind))  # before anything else asks
    assert torch.equal(module._parameters["weight"].detach(), expected)
    assert torch.equal(module.state_dict()["weight"], expected)
    fl.merge(module)
    assert torch.equal(module.weight, expected)


@EACH_KIND
@EACH_MODULE
@EACH
def test_with_gradients_a_write_is_refused_where_torch_refuses_it_and_changes_nothing(write, make, kind):
    module, before = partial(make, kind)
    expected = nn.Parameter(before.clone())
    torch.manual_seed(1)
    try:
        write(expected)
    except RuntimeError:
        torch.manual_seed(1)
        with pytest.raises((RuntimeError, fl.PartialTensorError)):
            write(module.weight)
        assert torch.equal(expected.detach(), before)
    else:
        torch.manual_seed(1)
        write(module.weight)
        assert not torch.equal(expected.detach(), before)
    after = expected.detach().clone()
    assert torch.equal(module.weight_learned.detach(), learned_of(after, kind))
    assert torch.equal(module.state_dict()["weight"], after)
    module.weight.square().sum().backward()
    torch.testing.assert_close(module.weight_learned.grad, 2 * learned_of(after, kind))


REFUSED = {
    "set_": lambda w: w.set_(torch.ones(6, 4)),
    "set_ of detached": lambda w: w.detach().set_(torch.ones(6, 4)),
    "resize_": lambda w: w.resize_(3, 4),
    "resize_ of data": lambda w: w.data.resize_(7, 4),
    "t_": lambda w: w.data.t_(),
    "numpy": lambda w: w.detach().numpy().__setitem__(1, 3.0),
    "data of another shape": lambda w: setattr(w, "data", torch.ones(4, 6)),
    "data of another dtype": lambda w: setattr(w, "data", torch.ones(6, 4).double()),
}


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@EACH_KIND
@EACH_MODULE
@pytest.mark.parametrize("write", REFUSED.values(), ids=REFUSED.keys())
def test_a_write_that_cannot_reach_both_parts_is_refused(write, make, kind, context):
    module, before = partial(make, kind)
    with context(), pytest.raises((fl.PartialTensorError, ValueError)):
        write(module.weight)
    assert torch.equal(module.state_dict()["weight"], before)
    assert torch.equal(module.weight_learned.detach(), learned_of(before, kind))
    assert module.weight.shape == (6, 4)
    with torch.no_grad():
        module.weight[3] = 5.0
    assert module.state_dict()["weight"][3].tolist() == [5.0] * 4


@EACH_KIND
@EACH_MODULE
def test_if_both_parts_were_written_what_learned_wins(make, kind):
    module, _ = partial(make, kind)
    frozen = module._parameters["weight"]
    with torch.no_grad():
        frozen.fill_(2.0)  # past the weight
        module.weight_learned.fill_(1.0)
    expected = torch.where(LEARNS[kind], 1.0, 2.0)
    assert torch.equal(module.weight.detach().clone(), expected)
    assert torch.equal(module.state_dict()["weight"], expected)
    with torch.no_grad():
        frozen.fill_(3.0)  # the frozen part alone: taken over
    assert torch.equal(module.weight.detach().clone(), torch.full((6, 4), 3.0))
    assert (module.weight_learned == 3).all()


def test_a_write_to_the_frozen_part_is_taken_over_before_a_step():
    module, _ = partial("head", "rows")
    optimizer = torch.optim.SGD([module.weight_learned], lr=0.5)
    with torch.no_grad():
        module._parameters["weight"].fill_(2.0)
    module.weight_learned.grad = torch.ones(2, 4)
    optimizer.step()
    assert module.weight_learned.tolist() == [[1.5] * 4] * 2
    assert module.state_dict()["weight"].sum(1).tolist() == [8, 6, 8, 6, 8, 8]


@EACH_KIND
@EACH_MODULE
@pytest.mark.parametrize("seed", range(60))
def test_writes_of_all_kinds_in_any_order_are_those_to_a_plain_tensor(seed, make, kind):
    """A tensor beside it gets every write; now and then they are compared, through the weight and views held so far."""
    draw = random.Random(seed)
    dtype = draw.choice([torch.float32, torch.float64, torch.bfloat16])
    torch.manual_seed(seed)
    module = MAKERS[make]().to(dtype)
    now, learns = module.weight.detach().clone(), LEARNS[kind]
    fl.train_only(module, {"weight": selection(kind)})
    fused = draw.random() < 0.5 and dtype != torch.bfloat16  # which rounds once, not twice
    optimizer = torch.optim.SGD([module.weight_learned], lr=0.1, fused=fused)
    held = []

    def step():
        optimizer.zero_grad()
        module.weight.float().sum().backward()
        optimizer.step()
        now.copy_(torch.where(learns, torch.add(now, torch.ones_like(now), alpha=-0.1), now))

    def scale():
        with torch.no_grad():
            module.weight.mul_(0.5)
        now.mul_(0.5)

    def row():
        r, value = draw.randrange(6), draw.random()
        with torch.no_grad():
            module.weight[r] = value
        now[r] = value

    def data():
        module.weight.data[2:4] += 1
        now[2:4] += 1

    def load():
        new = torch.randn(6, 4).to(dtype)
        module.load_state_dict({"weight": new})
        now.copy_(new)

    def hold():
        take = draw.choice([lambda w: w.detach(), lambda w: w[1], lambda w: w.t(), lambda w: w.data[2:]])
        held.append((take(module.weight), take))

    def write_held():
        if held:
            view, take = draw.choice(held)
            with torch.no_grad():
                view.add_(1)
            take(now).add_(1)

    def write_learned():
        with torch.no_grad():
            module.weight_learned.fill_(0.75)
        now.copy_(torch.where(learns, torch.tensor(0.75, dtype=dtype), now))

    def write_learned_uncounted():
        module.weight_learned.data.mul_(2)
        now.copy_(torch.where(learns, now * 2, now))

    def infer():
        with torch.inference_mode():
            module.weight.add_(0.25)
        now.add_(0.25)

    def initialize():
        nn.init.constant_(module.weight, 0.125)
        now.fill_(0.125)

    def forward():
        with draw.choice([torch.no_grad, torch.enable_grad, torch.inference_mode])():
            out = module(IDS) if make == "table" else module(torch.eye(4, dtype=dtype)).t()
        torch.testing.assert_close(out.detach(), now)

    def gradient():
        module.weight_learned.grad = None
        (module.weight * module.weight.detach()).float().sum().backward()
        torch.testing.assert_close(module.weight_learned.grad, learned_of(now, kind))

    actions = [step, scale, row, data, load, hold, write_held, write_learned, write_learned_uncounted, infer]
    actions += [initialize, forward, gradient, lambda: module.state_dict()]
    done = []
    for _ in range(16):
        action = draw.choice(actions)
        done.append(action.__name__)
        action()
        if draw.random() < 0.4:
            for view, take in held:
                assert torch.equal(view.detach().clone(), take(now)), done
        if draw.random() < 0.4:
            assert torch.equal(module.state_dict()["weight"], now), done
    assert torch.equal(module.weight.detach().clone(), now), done
    assert torch.equal(module.weight_learned.detach(), learned_of(now, kind)), done


COMPILED = pytest.mark.parametrize("backend", ["eager", "aot_eager"])


class Use(nn.Module):
    """The weight, whole, and detached."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        return (x @ self.weight.t()).square().sum() + self.weight.detach().norm() * self.weight.sum()


WRITTEN = torch.zeros(6, 4, dtype=torch.bool).index_fill(0, torch.tensor([1]), True)
WRITTEN[:, 2] = True


@EACH_KIND
@COMPILED
def test_compiled_and_eager_uses_between_writes_and_steps_agree(backend, kind):
    torch.manual_seed(0)
    torch._dynamo.reset()
    module, plain = Use(), Use()
    plain.load_state_dict(module.state_dict())
    start = module.state_dict()["weight"].clone()
    fl.train_only(module, {"weight": selection(kind)})
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    optimizers = [torch.optim.SGD([p], lr=0.01) for p in (module.weight_learned, plain.weight)]
    for _ in range(3):
        losses = []
        for use, optimizer, model in ((compiled, optimizers[0], module), (plain, optimizers[1], plain)):
            with torch.no_grad():
                model.weight[1].add_(0.5)  # through a view
                model.weight.t()[2] *= 0.5
            optimizer.zero_grad()
            loss = use(X)
            with torch.no_grad():
                evaluated = model(X)  # eager, between the compiled forward and its backward
            torch.testing.assert_close(evaluated, loss.detach())
            loss.backward()
            losses.append(loss.detach())
            if model is plain:
                plain.weight.grad[~LEARNS[kind]] = 0
            optimizer.step()
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(module.state_dict()["weight"], plain.weight.detach())
        torch.testing.assert_close(compiled(X), plain(X))
    assert (module.state_dict()["weight"] != start).equal(LEARNS[kind] | WRITTEN)


COPIES = ("contiguous", "to the same dtype", "half")
MAPPED_WRITES = {name: write for name, write in WRITES.items() if name not in COPIES and "integers" not in name}
MAPPED_WRITES["data replaced"] = lambda w: setattr(w, "data", torch.ones(6, 4))


@pytest.mark.parametrize(
    ("write", "learns"),
    [
        pytest.param(write, learns, id=f"{name}-{learns}")
        for learns in (True, False)
        for name, write in MAPPED_WRITES.items()
    ],
)
def test_no_write_reaches_a_mapped_table_in_memory_or_in_the_file(write, learns, tmp_path):
    start = torch.linspace(-1, 1, 24).view(6, 4)
    save_file({"table": start}, tmp_path / "table.safetensors")
    embed = fl.mapped_embedding(tmp_path / "table.safetensors")
    if learns:
        fl.train_only(embed, {"weight": fl.rows([3, 1])})
    before = (tmp_path / "table.safetensors").read_bytes()
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with context(), pytest.raises((fl.PartialTensorError, RuntimeError, AttributeError)):
            write(embed.weight)
        assert torch.equal(embed(IDS), start)
    assert (tmp_path / "table.safetensors").read_bytes() == before
    assert torch.equal(embed.state_dict()["weight"], start)
    if learns:
        embed.weight_learned.data.fill_(2.0)
        assert embed(IDS).sum(1).tolist()[1:4:2] == [8.0, 8.0]
