"""Frozen entries keep every bit, and learned ones do what they would do in a dense tensor.

The oracle is slow and obvious: the whole tensor learns, and after every step its frozen entries are put back.
"""

import copy
import functools

import pytest
import torch
from torch import nn

import frostline as fl

# torch's compiler hides this warning of its own; as an error it would stop the compilation
HIDDEN_BY_TORCH = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adam": functools.partial(torch.optim.Adam, lr=0.01),
    "adamw": functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "amsgrad": functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adagrad": functools.partial(torch.optim.Adagrad, lr=0.1, weight_decay=0.1),
    "rmsprop": functools.partial(torch.optim.RMSprop, lr=0.01, momentum=0.5, centered=True),
    "nadam": functools.partial(torch.optim.NAdam, lr=0.01),
    "radam": functools.partial(torch.optim.RAdam, lr=0.01, weight_decay=0.1),
    "adamax": functools.partial(torch.optim.Adamax, lr=0.01),
    "rprop": functools.partial(torch.optim.Rprop, lr=0.01),
    "asgd": functools.partial(torch.optim.ASGD, lr=0.01),
    "adadelta": functools.partial(torch.optim.Adadelta, lr=1.0),
}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 6)
        self.head = nn.Linear(6, 12)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.embed(ids)))


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 4, bidirectional=True, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


def one_lookup():
    return nn.Embedding(12, 6), torch.tensor([[0, 3, 3, 7], [9, 1, 3, 0]])


def one_bag(mode):
    return nn.EmbeddingBag(12, 6, mode=mode), torch.tensor([[0, 3, 3, 7], [9, 1, 3, 0]])


def one_linear():
    return nn.Linear(6, 5), torch.randn(4, 6)


def one_convolution():
    return nn.Conv2d(3, 4, 3), torch.randn(2, 3, 6, 6)


def rows_of(*ids):
    return fl.rows(ids), lambda shape: torch.zeros(shape, dtype=torch.bool).index_fill_(0, torch.tensor(ids), True)


def some_entries():
    def mask(shape):
        return torch.rand(shape, generator=torch.Generator().manual_seed(3)) > 0.6

    return mask, mask


# model and input, then for each partial tensor what learns, and the same as a mask of its shape made by hand
CASES = {
    "lookup": (one_lookup, {"weight": rows_of(7, 3, 0)}),
    "bag of sums": (functools.partial(one_bag, "sum"), {"weight": rows_of(7, 3, 0)}),
    "bag of means": (functools.partial(one_bag, "mean"), {"weight": rows_of(7, 3, 0)}),
    "bag of maxima": (functools.partial(one_bag, "max"), {"weight": rows_of(7, 3, 0)}),
    "lookup of entries": (one_lookup, {"weight": some_entries()}),
    "linear": (one_linear, {"weight": rows_of(4, 1)}),
    "linear and bias": (one_linear, {"weight": rows_of(4, 1), "bias": rows_of(0, 1)}),
    "only bias": (one_linear, {"bias": rows_of(3)}),
    "convolution": (one_convolution, {"weight": some_entries()}),
    "tied": (lambda: (Tied(), torch.tensor([[0, 3, 3, 7], [9, 1, 3, 0]])), {"embed.weight": rows_of(7, 3, 11)}),
    "tied with bias": (
        lambda: (Tied(), torch.tensor([[0, 3, 3, 7], [9, 1, 3, 0]])),
        {"embed.weight": rows_of(7, 3, 11), "head.bias": rows_of(3, 4)},
    ),
    "lstm": (
        lambda: (Tagger(), torch.randn(2, 3, 5)),
        {
            "lstm.weight_ih_l0": rows_of(0, 9),
            "lstm.weight_hh_l0_reverse": some_entries(),
            "lstm.bias_ih_l0": rows_of(2),
        },
    ),
}


def make(case):
    torch.manual_seed(0)
    build, selected = CASES[case]
    model, x = build()
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    selections = {
        name: fl.entries(choose(shapes[name])) if callable(choose) else choose for name, (choose, _) in selected.items()
    }
    masks = {name: mask(shapes[name]) for name, (_, mask) in selected.items()}
    return model, x, selections, masks


def loss_of(model, x):
    # Linear in the output but not the same for every entry, so that each learned entry gets a gradient of its own.
    out = model(x)
    return (out * torch.linspace(-1.0, 2.0, out.numel()).view_as(out)).sum() + 0.1 * out.pow(2).sum()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_entries_keep_every_bit_and_learned_ones_match_the_dense_oracle(case, optimizer):
    model, x, selections, masks = make(case)
    oracle = copy.deepcopy(model)
    before = {name: parameter.detach().clone() for name, parameter in oracle.named_parameters()}

    plan = fl.train_only(model, selections)
    ours = OPTIMIZERS[optimizer](plan.parameters())
    theirs = OPTIMIZERS[optimizer](oracle.parameters())
    for _ in range(5):
        ours.zero_grad()
        loss_of(model, x).backward()
        ours.step()

        theirs.zero_grad()
        loss_of(oracle, x).backward()
        theirs.step()
        with torch.no_grad():
            for name, parameter in oracle.named_parameters():
                kept = ~masks.get(name, torch.zeros(parameter.shape, dtype=torch.bool))
                parameter[kept] = before[name][kept]

    for name, expected in oracle.named_parameters():
        after = model.get_parameter(name).detach().clone()
        mask = masks.get(name, torch.zeros(expected.shape, dtype=torch.bool))
        assert torch.equal(after[~mask], before[name][~mask])
        torch.testing.assert_close(after[mask], expected.detach()[mask], rtol=2e-5, atol=2e-6)
        moved = mask & (expected != before[name])  # a maximum or a lookup may leave a learned entry unused
        assert (after[moved] != before[name][moved]).all()
        assert moved.any() == mask.any()


@pytest.mark.parametrize("case", CASES)
def test_output_is_as_before_and_gradient_is_the_dense_gradients_part(case):
    model, x, selections, masks = make(case)
    expected = loss_of(model, x)
    expected.backward()
    dense = {name: parameter.grad for name, parameter in model.named_parameters()}
    plan = fl.train_only(model, selections)
    assert all(parameter.grad is None for parameter in model.parameters())

    loss = loss_of(model, x)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    assert len(plan.parameters()) == len(masks)
    for name in masks:
        weight = model.get_parameter(name)
        ids = weight.learned_indices.index
        torch.testing.assert_close(weight.learned.grad, dense[name][ids], rtol=1e-5, atol=1e-6)
        assert weight.frozen.grad is None
        assert weight.learned.grad.abs().sum() > 0


@HIDDEN_BY_TORCH
@pytest.mark.parametrize("case", CASES)
def test_compiled_gradients_equal_eager_ones(case):
    model, x, selections, _ = make(case)
    plan = fl.train_only(model, selections)
    eager = torch.autograd.grad(loss_of(model, x), plan.parameters())
    torch._dynamo.reset()
    compiled = torch.compile(
        model, backend="aot_eager", fullgraph=case != "lstm"
    )  # dynamo refuses recurrent modules whole
    gradients = torch.autograd.grad(loss_of(compiled, x), plan.parameters())
    for ours, expected in zip(gradients, eager, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
        assert expected.abs().sum() > 0


def test_compiled_by_inductor_a_tied_pair_with_a_partial_bias_learns_as_in_eager():
    model, x, selections, _ = make("tied with bias")
    plan = fl.train_only(model, selections)
    eager = torch.autograd.grad(loss_of(model, x), plan.parameters())
    torch._dynamo.reset()
    gradients = torch.autograd.grad(loss_of(torch.compile(model, fullgraph=True), x), plan.parameters())
    assert len(gradients) == 2
    for ours, expected in zip(gradients, eager, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
        assert expected.abs().sum() > 0


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 3, -1])
@pytest.mark.parametrize("offsets", [None, [0, 2, 2], [0, 2, 6]])
def test_a_bag_agrees_with_torch_for_every_mode_padding_and_offsets(mode, padding_idx, offsets):
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(12, 6, mode=mode, padding_idx=padding_idx, include_last_offset=offsets == [0, 2, 6])
    ids = torch.tensor([3, 0, 7, 7, 11, 1])
    arguments = (ids.view(2, 3),) if offsets is None else (ids, torch.tensor(offsets))
    weights = torch.rand(ids.shape, requires_grad=True)
    if mode == "sum":
        arguments = (*arguments, *([None] if offsets is None else []), weights.view_as(arguments[0]))
    expected = bag(*arguments)
    expected.square().sum().backward()
    dense, dense_weights = bag.weight.grad, weights.grad
    weights.grad = None
    fl.train_only(bag, {"weight": fl.rows([7, 1])})
    out = bag(*arguments)
    out.square().sum().backward()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(bag.weight.learned.grad, dense[[7, 1]])
    assert dense[[7, 1]].abs().sum() > 0
    if mode == "sum":
        torch.testing.assert_close(weights.grad, dense_weights)


@pytest.mark.parametrize("make_module", [nn.Embedding, nn.EmbeddingBag])
def test_a_sparse_lookup_names_only_the_learned_rows_in_use(make_module):
    module = make_module(12, 6, sparse=True)
    fl.train_only(module, {"weight": fl.rows([9, 2, 7])})
    module(torch.tensor([[7, 0, 7, 5]])).sum().backward()
    gradient = module.weight.learned.grad
    assert gradient.is_sparse
    assert gradient._indices().tolist() == [[2, 2]]  # row 7 is the third learned row, used twice
    module.weight.learned.grad = None
    module(torch.tensor([[0, 5]])).sum().backward()
    assert module.weight.learned.grad._nnz() == 0


@HIDDEN_BY_TORCH
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiled_or_not_a_sparse_lookup_has_a_sparse_gradient_of_the_same_rows(backend):
    module = nn.Embedding(12, 6, sparse=True)
    fl.train_only(module, {"weight": fl.rows([9, 2, 7])})
    ids = torch.tensor([[7, 0, 7, 5]])
    torch._dynamo.reset()
    torch.compile(module, backend=backend)(ids).sum().backward()
    assert module.weight.learned.grad.is_sparse
    assert module.weight.learned.grad.coalesce().indices().tolist() == [[2]]
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="sparse_gradient_needs_eager"):
        torch.compile(module, backend=backend, fullgraph=True)(ids)


def test_a_step_allocates_nothing_of_the_size_of_the_table():
    rows, width = 100_000, 64
    model = nn.ModuleDict({"embed": nn.Embedding(rows, width), "bag": nn.EmbeddingBag(rows, width)})
    head = nn.Linear(width, rows, bias=False)
    plans = [
        fl.train_only(model, {"*": fl.rows(range(0, rows, rows // 10))}),
        fl.train_only(head, {"weight": fl.rows(range(10))}),
    ]
    ids = torch.randint(rows, (2, 8))

    def step():
        x = model["embed"](ids).sum(1) + model["bag"](ids)
        head(x).logsumexp(-1).sum().backward()

    step()
    with torch.profiler.profile(profile_memory=True, record_shapes=False) as profile:
        step()
    largest = max(event.self_cpu_memory_usage for event in profile.key_averages())
    assert 0 < largest < rows * width * 4 / 4  # head outputs are 2 x 100,000; the table is 64 times one of them
    assert all(parameter.grad.shape[0] == 10 for plan in plans for parameter in plan.parameters())
