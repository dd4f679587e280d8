"""After every step the memory of a partly learning tensor holds what its `state_dict()` says, whoever reads it."""

import ctypes
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import frostline as fl


class Plain(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return x @ self.weight


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids))


class First(nn.Module):
    """A module of which the first output counts."""

    def __init__(self, module, inputs=1):
        super().__init__()
        self.module, self.inputs = module, inputs

    def forward(self, x):
        result = self.module(*[x] * self.inputs)
        return result[0] if isinstance(result, tuple) else result


X, IDS = torch.linspace(-1, 1, 20).view(5, 4), torch.tensor([0, 1, 5, 5])
MODELS = {
    "linear": (lambda: nn.Linear(4, 6), "weight", X),
    "bias": (lambda: nn.Linear(4, 6), "bias", X),
    "tied head": (Tied, "embed.weight", IDS),
    "convolution": (lambda: nn.Conv1d(5, 6, 3), "weight", X[None]),
    "convolution in 2d": (lambda: nn.Conv2d(1, 6, 3), "weight", X[None, None]),
    "transposed convolution": (lambda: nn.ConvTranspose2d(1, 3, 2), "bias", X[None, None]),
    "lstm": (lambda: First(nn.LSTM(4, 3, bidirectional=True)), "module.weight_hh_l0_reverse", X),
    "gru": (lambda: First(nn.GRU(4, 3)), "module.weight_ih_l0", X),
    "lstm cell": (lambda: First(nn.LSTMCell(4, 3)), "module.weight_ih", X),
    "gru cell": (lambda: nn.GRUCell(4, 3), "bias_ih", X),
    "attention": (lambda: First(nn.MultiheadAttention(4, 2), 3), "module.in_proj_weight", X),
    "attention's output": (lambda: First(nn.MultiheadAttention(4, 2), 3), "module.out_proj.weight", X),
    "layer norm": (lambda: nn.LayerNorm(4), "weight", X),
    "batch norm": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)), "0.bias", X),
    "rms norm": (lambda: nn.RMSNorm(4), "weight", X),
    "group norm": (lambda: nn.GroupNorm(2, 4), "weight", X),
    "bilinear": (lambda: First(nn.Bilinear(4, 4, 3), 2), "module.weight", X),
    "plain parameter": (lambda: Plain(4, 3), "weight", X),
    "experts in 3d": (lambda: Plain(3, 4, 5), "weight", X.expand(3, 5, 4)),
}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "fused sgd": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=0.1, foreach=True),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "fused adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, fused=True),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
    "row sgd": lambda p: fl.optim.RowSGD(p, lr=0.1),
    "row adagrad": lambda p: fl.optim.RowAdagrad(p, lr=0.1),
    "row adamw": lambda p: fl.optim.RowAdamW(p, lr=0.1),
}


def step(model, optimizer, x):
    def closure():
        optimizer.zero_grad()
        loss = (model(x) - 0.5).square().sum()
        loss.backward()
        return loss

    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


def memory(tensor):
    """Return the bytes at the address of `tensor`, read past torch."""
    size = tensor.numel() * tensor.element_size()
    return bytes((ctypes.c_char * size).from_address(torch._C.TensorBase.data_ptr(tensor)))


@pytest.mark.parametrize("kind", ["rows", "entries"])
@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize(("make", "name", "x"), MODELS.values(), ids=MODELS.keys())
def test_after_each_step_all_readers_see_the_values_of_the_state_dict(make, name, x, make_optimizer, kind):
    torch.manual_seed(0)
    model = make()
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    captured = model.get_parameter(name)  # outside the model, before the plan
    shape = captured.shape
    closure, bound = (lambda: captured.detach() * 1), functools.partial(torch.add, captured, 0)
    learns = torch.zeros(shape, dtype=torch.bool)
    if kind == "rows":
        learns[[0, shape[0] - 1]] = True
    else:
        learns.view(-1)[::3] = True
    plan = fl.train_only(model, {name: fl.rows([0, shape[0] - 1]) if kind == "rows" else fl.entries(learns)})
    weight = getattr(module, leaf)
    held = {
        "row": (weight[0], lambda w: w[0]),
        "detached": (weight.detach(), lambda w: w),
        "turned": (_turned(weight), _turned),
    }
    optimizer, before = make_optimizer(plan.parameters()), model.state_dict()[name].clone()
    for _ in range(2):
        step(model, optimizer, x)
        raw = memory(module._parameters[leaf])  # first: asking the module would bring the memory up to date
        readers = {
            "captured": captured.detach().clone(),
            "closure": closure(),
            "partial": bound().detach(),
            "among the parameters": dict(model.named_parameters())[name].detach().clone(),
            "numpy": torch.from_numpy(captured.detach().numpy().copy()),
        }
        views = {key: view.detach().clone() for key, (view, _) in held.items()}
        expected = model.state_dict()[name].clone()
        assert raw == expected.numpy().tobytes()
        readers["dlpack"] = torch.from_dlpack(getattr(module, leaf).detach())
        readers["numpy of the weight"] = torch.from_numpy(np.asarray(getattr(module, leaf).detach()).copy())
        assert [key for key, value in readers.items() if not torch.equal(value, expected)] == []
        assert [key for key, view in views.items() if not torch.equal(view, held[key][1](expected))] == []
        assert torch.equal(expected[learns], module._parameters[f"{leaf}_learned"].detach().view(-1))
    assert torch.equal(expected[~learns], before[~learns])
    assert (expected[learns] != before[learns]).any()


def _turned(w):
    return w.permute(*reversed(range(w.ndim)))


TABLES = {
    "embedding": lambda: nn.Embedding(6, 4),
    "sparse embedding": lambda: nn.Embedding(6, 4, sparse=True),
    "bag": lambda: nn.EmbeddingBag(6, 4),
}
QUESTIONS = {
    "weight": lambda m: m.weight.detach().clone(),
    "numpy": lambda m: torch.from_numpy(m.weight.detach().numpy().copy()),
    "address": lambda m: torch.frombuffer(bytearray(_read(m.weight.data_ptr(), 96)), dtype=torch.float32).view(6, 4),
    "state dict": lambda m: m.state_dict()["weight"].clone(),
    "captured after a sum": lambda m: (m.weight.sum(), m._parameters["weight"].detach().clone())[1],
    "dlpack": lambda m: torch.from_dlpack(m.weight.detach()),
    "function": lambda m: F.linear(torch.eye(4), m.weight.detach()).T.contiguous(),
}


def _read(address, size):
    return bytes((ctypes.c_char * size).from_address(address))


@pytest.mark.parametrize("make_optimizer", [OPTIMIZERS["sgd"], OPTIMIZERS["row adagrad"], OPTIMIZERS["fused sgd"]])
@pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS.keys())
@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES.keys())
def test_a_table_that_is_only_looked_up_is_right_when_asked_through_the_weight(make, ask, make_optimizer):
    model = make()
    if getattr(model, "sparse", False) and make_optimizer is not OPTIMIZERS["row adagrad"]:
        make_optimizer = lambda p: torch.optim.SparseAdam(p, lr=0.1)  # noqa: E731
    before = model.weight.detach().clone()
    optimizer = make_optimizer(fl.train_only(model, {"weight": fl.rows([1, 5])}).parameters())
    for _ in range(2):
        step(model, optimizer, IDS[None])
        now = before.clone()
        now[[1, 5]] = model.weight_learned.detach()
        assert torch.equal(ask(model), now)
    assert (now != before).any(1).nonzero().flatten().tolist() == [1, 5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make_optimizer", [OPTIMIZERS["fused adamw"], OPTIMIZERS["sgd"]])
def test_a_float32_part_is_in_the_memory_of_a_half_precision_head_rounded(dtype, make_optimizer):
    model = nn.Linear(4, 6, bias=False).to(dtype)
    captured = model.weight
    optimizer = make_optimizer(fl.train_only(model, {"weight": fl.rows([1, 5], dtype=torch.float32)}).parameters())
    start = captured.detach().clone()
    for _ in range(2):
        step(lambda x: model(x.to(dtype)).float(), optimizer, X)
        assert torch.equal(captured.detach()[[1, 5]], model.weight_learned.detach().to(dtype))
        assert torch.equal(captured.detach(), model.state_dict()["weight"])
    assert model.weight_learned.dtype == torch.float32
    assert (captured.detach() != start).any(1).nonzero().flatten().tolist() == [1, 5]


class Holder:
    """No module: what it holds is not among the model's tensors."""

    def __init__(self, weight):
        self.weight = weight


HOLDERS = {
    "partial": lambda w: functools.partial(F.linear, weight=w),
    "closure": lambda w: lambda x: F.linear(x, w),
    "attribute": lambda w: lambda x, held=Holder(w): F.linear(x, held.weight),  # noqa: B008
    "dictionary": lambda w: lambda x, held={"w": w}: F.linear(x, held["w"]),
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS.keys())
def test_a_function_outside_the_model_that_captured_the_parameter_computes_current_logits(hold):
    model = nn.Linear(4, 6, bias=False)
    head = hold(model.weight)
    optimizer = torch.optim.SGD(fl.train_only(model, {"weight": fl.rows([1])}).parameters(), lr=0.1)
    before = head(X).detach()
    for _ in range(2):
        step(model, optimizer, X)
        torch.testing.assert_close(head(X), model(X))  # one product, or two
    assert ((head(X) - before).abs() > 1e-3).any(0).nonzero().flatten().tolist() == [1]


class Callable(Holder):
    def __call__(self, x):
        return F.linear(x, self.weight)

    def method(self, x):
        return self(x)


INSIDE = {
    **{key: hold for key, hold in HOLDERS.items() if key != "attribute"},
    "object": Holder,
    "list": lambda w: [{"head": w}],
    "callable": Callable,
    "method": lambda w: Callable(w).method,
}


@pytest.mark.parametrize("inside", INSIDE)
def test_the_same_inside_the_model_is_refused(inside):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(6, 4)
            self.head = INSIDE[inside](self.embed.weight)

        def forward(self, ids):
            return self.head(self.embed(ids))

    model = Model()
    before = {name: id(p) for name, p in model.named_parameters()}
    with pytest.raises(fl.PartialTensorError, match=r"embed.weight shares its memory with attribute head of the model"):
        fl.train_only(model, {"embed.weight": fl.rows([1])})
    assert {name: id(p) for name, p in model.named_parameters()} == before


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("read", [lambda m: m.state_dict(), lambda m: m.weight.detach(), lambda m: m.weight.data_ptr()])
@pytest.mark.parametrize("name", ["linear", "plain parameter", "convolution", "gru"])
def test_a_value_that_is_repaired_leaves_nothing_behind(name, read, bad):
    make, where, x = MODELS[name]
    model = make()
    module, leaf = model.get_submodule(where.rpartition(".")[0]), where.rpartition(".")[2]
    fl.train_only(model, {where: fl.rows([1])})
    learned = getattr(module, f"{leaf}_learned")
    learned.data.fill_(bad)
    if leaf == "weight":
        read(module)
    assert not model(x).isfinite().all()
    learned.data.fill_(0.5)
    x = x.clone().requires_grad_()
    result = model(x)
    result.sum().backward()
    assert result.isfinite().all()
    assert x.grad.isfinite().all()
    fl.merge(model)
    again = x.detach().clone().requires_grad_()
    model(again).sum().backward()
    torch.testing.assert_close(x.grad, again.grad)


@pytest.mark.parametrize("kind", ["rows", "entries"])
@pytest.mark.parametrize("everything_is_given", [True, False])
def test_lbfgs_keeps_minus_zero_in_what_is_frozen_or_is_refused(everything_is_given, kind):
    torch.manual_seed(0)
    model = nn.Linear(4, 6)
    model.weight.data[0] = -0.0
    selection = fl.rows([1, 2]) if kind == "rows" else fl.entries(torch.arange(24).view(6, 4) % 7 == 5)
    plan = fl.train_only(model, {"weight": selection})
    optimizer = torch.optim.LBFGS(list(model.parameters()) if everything_is_given else plan.parameters(), lr=0.1)
    before = model.state_dict()["weight"].clone()
    if everything_is_given:
        with pytest.raises(fl.StaleOptimizerError, match=r"Give it what learns alone: torch.optim.LBFGS\(plan"):
            step(model, optimizer, X)
        assert torch.equal(model.state_dict()["weight"].view(torch.int32), before.view(torch.int32))
        return
    step(model, optimizer, X)
    after = model.state_dict()["weight"]
    changed = after.view(torch.int32) != before.view(torch.int32)
    assert changed.any()
    assert not changed[0].any() or kind == "entries"
    learns = (
        torch.arange(24).view(6, 4) % 7 == 5 if kind == "entries" else torch.tensor([0, 1, 1, 0, 0, 0]).bool()[:, None]
    )
    assert not (changed & ~learns).any()
