"""DataParallel's replicas and torch.func's ensembles of partly learning models compute what the models do, or raise."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev, stack_module_state, vmap

import frostline as fl

MASK = torch.arange(24).view(6, 4) % 5 == 0
X, IDS = torch.linspace(-1, 1, 20).view(5, 4), torch.tensor([0, 1, 3, 3])


class Plain(nn.Module):
    """A module that can be made without arguments: torch makes replicas of it in another way."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        return x @ self.weight.T


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids))


class First(nn.Module):
    def __init__(self, module, inputs=1):
        super().__init__()
        self.module, self.inputs = module, inputs

    def forward(self, x):
        result = self.module(*[x] * self.inputs)
        return result[0] if isinstance(result, tuple) else result


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(6, 4), torch.randn(6, 4)])

    def forward(self, x):
        return x @ self.weights[0].T + x @ self.weights[1].T


MODELS = {
    "plain parameter": (Plain, "weight", X),
    "embedding": (lambda: nn.Embedding(6, 4), "weight", IDS),
    "sparse embedding": (lambda: nn.Embedding(6, 4, sparse=True), "weight", IDS),
    "bag": (lambda: nn.EmbeddingBag(6, 4), "weight", IDS[None]),
    "linear": (lambda: nn.Linear(4, 6), "weight", X),
    "bias": (lambda: nn.Linear(4, 6), "bias", X),
    "convolution": (lambda: nn.Conv1d(5, 6, 3), "weight", X[None]),
    "lstm": (lambda: First(nn.LSTM(4, 3)), "module.weight_ih_l0", X),
    "attention": (lambda: First(nn.MultiheadAttention(4, 2), 3), "module.in_proj_weight", X),
    "tied head": (Tied, "embed.weight", IDS),
    "norm": (lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6)), "1.weight", X),
    "parameter list": (Listed, "weights.1", X),
    "bfloat16": (lambda: nn.Linear(4, 6).bfloat16(), "weight", X.bfloat16()),
}


def replicate(model, copy_=torch.clone):
    """Make a replica as `torch.nn.parallel.replicate` does, on one device; `copy_` is its broadcast."""
    modules, parameters = list(model.modules()), list(model.parameters())
    copies = {parameter: copy_(parameter) for parameter in parameters}
    replicas = {module: module._replicate_for_data_parallel() for module in modules}
    for module, replica in replicas.items():
        replica._former_parameters = {}
        for name, child in module._modules.items():
            replica._modules[name] = None
            if child is not None:
                setattr(replica, name, replicas[child])
        for name, parameter in module._parameters.items():
            if parameter is None:
                replica._parameters[name] = None
            else:
                setattr(replica, name, copies[parameter])  # a tensor, not a Parameter
                replica._former_parameters[name] = copies[parameter]
        for name, buffer in module._buffers.items():
            setattr(replica, name, buffer)
    return replicas[model]


def partial(make, name, selection):
    torch.manual_seed(0)
    model = make()
    fl.train_only(model, {name: selection})
    owner = model.get_submodule(name.rpartition(".")[0])
    learned = owner._parameters[f"{name.rpartition('.')[2]}_learned"]
    with torch.no_grad():
        learned += 0.5
    return model, learned


@pytest.mark.parametrize("selection", [fl.rows([1, 3]), fl.rows([1, 3], dtype=torch.float32)], ids=["rows", "float32"])
@pytest.mark.parametrize(("make", "name", "x"), MODELS.values(), ids=MODELS.keys())
def test_a_replica_computes_what_the_model_does_and_its_gradient_comes_back(make, name, x, selection):
    model, learned = partial(make, name, selection)
    expected = model(x)
    expected.float().square().sum().backward()
    gradient, learned.grad = learned.grad.to_dense(), None
    assert gradient.abs().sum() > 0
    keys, values = list(model.state_dict()), [value.clone() for value in model.state_dict().values()]
    first, second = replicate(model), replicate(model)
    for replica in (first, second):
        result = replica(x)
        assert torch.equal(result.detach(), expected.detach())
        result.float().square().sum().backward()
    assert torch.equal(learned.grad.to_dense(), 2 * gradient)
    assert type(first) is type(model)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    assert list(model.state_dict()) == keys
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), values, strict=True))
    with torch.no_grad():
        assert torch.equal(replicate(model, torch.Tensor.detach)(x), expected.detach())
    torch.optim.SGD([learned], lr=0.1).step()
    assert not torch.equal(model(x), expected)
    assert torch.equal(replicate(model)(x), model(x))


@pytest.mark.parametrize("selection", [fl.rows([1, 3]), fl.entries(MASK)], ids=["rows", "entries"])
@pytest.mark.parametrize("name", ["plain parameter", "linear", "embedding"])
def test_the_weight_of_a_replica_can_be_used_in_any_way(name, selection):
    make, where, _ = MODELS[name]
    model, learned = partial(make, where, selection)
    for use in (lambda w: w.square().sum(), lambda w: (w.t()[2:] @ w).sum(), lambda w: (w * w.detach()).sum()):
        use(model.weight).backward()
        gradient, learned.grad = learned.grad, None
        use(replicate(model).weight).backward()
        torch.testing.assert_close(learned.grad, gradient)
        learned.grad = None


def test_a_replica_of_a_model_in_eval_mode_and_one_of_frozen_statistics_work():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    fl.train_only(model, {"0.weight": fl.rows([1])}, freeze_running_stats=True)
    before = model[1].running_mean.clone()
    expected = model(X)
    replica = replicate(model)
    replica.train()
    assert torch.equal(replica(X), expected)
    assert torch.equal(model[1].running_mean, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(("make", "name", "x"), MODELS.values(), ids=MODELS.keys())
def test_data_parallel_on_a_device_trains_what_learns(make, name, x):
    model, learned = partial(make, name, fl.rows([1, 3]))
    model, x = model.cuda(), x.cuda()
    from torch.nn.parallel import replicate as torch_replicate

    (replica,) = torch_replicate(model, [0])
    assert torch.equal(replica(x), model(x))
    replica(x).float().square().sum().backward()
    assert learned.grad.to_dense().abs().sum() > 0


ENSEMBLES = {"embedding": MODELS["embedding"], "linear": MODELS["linear"], "plain parameter": MODELS["plain parameter"]}
SAME = {
    "rows": (fl.rows([1, 3]), fl.rows([1, 3])),
    "all rows": (fl.rows(range(6)), fl.rows(range(6))),
    "entries": (fl.entries(MASK), fl.entries(MASK)),
}
OTHER = {
    "other rows": (fl.rows([1, 3]), fl.rows([2, 3])),
    "another order": (fl.rows([1, 3]), fl.rows([3, 1])),
    "other entries": (fl.entries(MASK), fl.entries(MASK.flip(0).flip(1))),
    "rows and all": (fl.rows([0, 1, 2, 3, 4, 5]), fl.rows([5, 4, 3, 2, 1, 0])),
}


def two(make, name, selections, same_start):
    """Two models of an ensemble, both trained a little."""
    torch.manual_seed(0)
    first = make()
    second = copy.deepcopy(first) if same_start else make()
    for model, selection, by in zip((first, second), selections, (0.5, -0.5), strict=True):
        fl.train_only(model, {name: selection})
        with torch.no_grad():
            model.weight_learned += by
    return first, second


@pytest.mark.parametrize("same_start", [True, False])
@pytest.mark.parametrize("selections", SAME.values(), ids=SAME.keys())
@pytest.mark.parametrize(("make", "name", "x"), ENSEMBLES.values(), ids=ENSEMBLES.keys())
def test_an_ensemble_in_which_the_same_learns_computes_what_its_models_do(make, name, x, selections, same_start):
    first, second = two(make, name, selections, same_start)
    parameters, _ = stack_module_state([first, second])
    for base in (first, copy.deepcopy(first).to("meta")):
        results = vmap(lambda p, base=base: functional_call(base, p, (x,)))(parameters)
        torch.testing.assert_close(results[0], first(x))
        torch.testing.assert_close(results[1], second(x))
    of_second = dict(second.named_parameters())
    assert torch.equal(functional_call(first, of_second, (x,)), second(x))
    detached = {key: value.detach() for key, value in of_second.items()}
    assert torch.equal(functional_call(first, detached, (x,)), second(x))
    gradients = grad(lambda p: functional_call(first, p, (x,)).square().sum())(detached)
    second(x).square().sum().backward()
    torch.testing.assert_close(gradients["weight_learned"], second.weight_learned.grad)
    assert gradients["weight_learned"].abs().sum() > 0


@pytest.mark.parametrize("same_start", [True, False])
@pytest.mark.parametrize("selections", OTHER.values(), ids=OTHER.keys())
@pytest.mark.parametrize(("make", "name", "x"), ENSEMBLES.values(), ids=ENSEMBLES.keys())
def test_an_ensemble_in_which_other_elements_learn_is_right_or_refused(make, name, x, selections, same_start):
    for _ in range(5):  # each time with other objects, of which some get the identity of earlier ones
        first, second = two(make, name, selections, same_start)
        parameters, _ = stack_module_state([first, second])
        base = copy.deepcopy(first).to("meta")
        expected = second(x)
        for ask in (
            lambda base=base, p=parameters: vmap(lambda p: functional_call(base, p, (x,)))(p)[1],
            lambda m=first, p=parameters: vmap(lambda p: functional_call(m, p, (x,)))(p)[1],
            lambda m=first, other=second: functional_call(m, dict(other.named_parameters()), (x,)),
        ):
            try:
                result = ask()
            except fl.PartialTensorError as error:
                says = str(error)
            else:
                torch.testing.assert_close(result, expected)
                continue
            assert "fl.merge" in says
        assert torch.equal(second(x), expected)
    for model in (first, second):
        fl.merge(model)
    parameters, _ = stack_module_state([first, second])  # the way out
    results = vmap(lambda p: functional_call(first, p, (x,)))(parameters)
    torch.testing.assert_close(results[1], expected)


@pytest.mark.parametrize("selections", OTHER.values(), ids=OTHER.keys())
@pytest.mark.parametrize(("make", "name", "x"), ENSEMBLES.values(), ids=ENSEMBLES.keys())
def test_detached_parameters_of_a_model_in_which_other_elements_learn_are_right_or_refused(make, name, x, selections):
    first, second = two(make, name, selections, same_start=True)
    detached = {key: value.detach() for key, value in second.named_parameters()}
    try:
        result = functional_call(first, detached, (x,))
    except fl.PartialTensorError:
        return
    torch.testing.assert_close(result, second(x))


GIVEN = {
    "a tensor": lambda: torch.zeros(2, 4),
    "one with a gradient": lambda: torch.zeros(2, 4, requires_grad=True),
    "a Parameter": lambda: nn.Parameter(torch.zeros(2, 4)),
}


@pytest.mark.parametrize("give", GIVEN.values(), ids=GIVEN.keys())
@pytest.mark.parametrize(("make", "name", "x"), ENSEMBLES.values(), ids=ENSEMBLES.keys())
def test_a_learned_part_that_is_given_for_one_call_leaves_no_trace(make, name, x, give):
    model, learned = partial(make, name, fl.rows([1, 3]))
    before, expected = model.state_dict()["weight"].clone(), model(x).detach()
    zeroed = copy.deepcopy(model)
    zeroed.weight_learned.data.zero_()
    for _ in range(3):
        given = give()
        result = functional_call(model, {"weight_learned": given}, (x,))
        assert torch.equal(result.detach(), zeroed(x).detach())
        raw = torch.frombuffer(model._parameters["weight"].detach().numpy(), dtype=torch.float32).view(6, 4).clone()
        assert torch.equal(model(x).detach(), expected)
        assert torch.equal(model.state_dict()["weight"], before)
        assert torch.equal(learned.detach(), before[[1, 3]])
        if given.requires_grad:
            result.square().sum().backward()
            assert given.grad is not None
            assert learned.grad is None
    assert torch.equal(raw, before)
    with pytest.raises(fl.PartialTensorError, match="Pass both parts as they are"):
        functional_call(model, {"weight": torch.zeros(6, 4)}, (x,))
    whole = torch.zeros(6, 4, requires_grad=True)
    assert functional_call(model, {"weight": whole}, (x,)).shape == expected.shape


def test_second_derivatives_by_torch_func_are_those_of_the_whole_weight():
    model, _ = partial(*MODELS["plain parameter"][:2], fl.rows([1, 3]))
    parts = {name: value.detach() for name, value in model.named_parameters()}

    def loss(learned):
        return functional_call(model, parts | {"weight_learned": learned}, (X,)).tanh().square().sum()

    def whole_loss(weight):
        return (X @ weight.T).tanh().square().sum()

    whole = model.weight.detach().clone()
    torch.testing.assert_close(jacrev(loss)(parts["weight_learned"]), jacrev(whole_loss)(whole)[[1, 3]])
    expected = hessian(whole_loss)(whole)[[1, 3]][:, :, [1, 3]]
    assert expected.abs().sum() > 0
    torch.testing.assert_close(hessian(loss)(parts["weight_learned"]), expected)
    per_sample = vmap(grad(lambda p, x: functional_call(model, p, (x[None],)).square().sum()), in_dims=(None, 0))(
        parts, X
    )
    assert per_sample["weight_learned"].shape == (5, 2, 4)
    expected = vmap(grad(lambda w, x: (x @ w.T).square().sum()), in_dims=(None, 0))(whole, X)[:, [1, 3]]
    torch.testing.assert_close(per_sample["weight_learned"], expected)
