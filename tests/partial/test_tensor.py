"""A partial tensor can be used like the whole tensor; a write to it reaches both parts or raises."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import frostline as fl

ROWS = [3, 1]


def partial(selection=None):
    torch.manual_seed(0)
    module = nn.Embedding(6, 4)
    fl.train_only(module, {"weight": selection or fl.rows(ROWS)})
    return module


SELECTIONS = {
    "rows": fl.rows(ROWS),
    "entries": fl.entries(torch.rand(6, 4, generator=torch.Generator().manual_seed(1)) > 0.5),
}

# Every way to write: what is done to the partial tensor is done to a plain one beside it.
WRITES = {
    "item": lambda w: w.__setitem__(1, 9.0),
    "slice": lambda w: w.__setitem__((slice(None), 2), 9.0),
    "mask": lambda w: w.__setitem__(w > 0, 9.0),
    "fill_": lambda w: w.fill_(9.0),
    "copy_": lambda w: w.copy_(torch.arange(24.0).view(6, 4)),
    "mul_": lambda w: w.mul_(2),
    "zero_ of data": lambda w: w.data.zero_(),
    "item of data": lambda w: w.data.__setitem__([0, 3], 9.0),
    "data replaced": lambda w: setattr(w, "data", torch.arange(24.0).view(6, 4)),
    "row view": lambda w: w[1].fill_(9.0),
    "row view of data": lambda w: w.data[3].zero_(),
    "view of view": lambda w: w.t()[2].view(6)[1:4].mul_(3),
    "transposed": lambda w: w.t().add_(1),
    "flat": lambda w: w.view(-1).clamp_(0),
    "chunk": lambda w: w.chunk(2)[1].neg_(),
    "detached": lambda w: w.detach()[3].fill_(9.0),
    "init.constant_": lambda w: nn.init.constant_(w, 9.0),
    "init.eye_": lambda w: nn.init.eye_(w),
    "index_fill_": lambda w: w.index_fill_(0, torch.tensor([0, 1]), 9.0),
    "out": lambda w: torch.mul(torch.ones(6, 4), 5, out=w),
    "foreach": lambda w: torch._foreach_mul_([w], 2.0),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_write_reaches_both_parts(write, selection):
    module = partial(SELECTIONS[selection])
    expected = module.weight.detach().clone()
    before = expected.clone()
    with torch.no_grad():
        WRITES[write](module.weight)
        WRITES[write](expected)
    assert not torch.equal(expected, before)
    assert torch.equal(module.weight.detach().clone(), expected)
    fl.merge(module)
    assert torch.equal(module.weight, expected)


def test_random_initialisation_reaches_both_parts_and_returns_the_tensor():
    module = partial()
    torch.manual_seed(5)
    result = nn.init.xavier_uniform_(module.weight)
    torch.manual_seed(5)
    expected = nn.init.xavier_uniform_(torch.empty(6, 4))
    assert isinstance(result, fl.PartialTensor)
    assert torch.equal(module.weight.detach().clone(), expected)
    module.reset_parameters()
    assert not torch.equal(module.weight.detach().clone(), expected)


def test_reset_parameters_clears_the_padding_row_of_a_partial_table():
    module = nn.Embedding(6, 4, padding_idx=2)
    fl.train_only(module, {"weight": fl.rows(ROWS)})
    with torch.no_grad():
        module.weight[2] = 5.0
    module.reset_parameters()
    assert module.weight[2].tolist() == [0.0] * 4


def test_a_view_is_live():
    module = partial()
    row = module.weight.detach()[3]
    with torch.no_grad():
        module.weight_learned.fill_(7.0)
        row.add_(1)
    assert row.tolist() == [8.0] * 4
    assert module.weight_learned[0].tolist() == [8.0] * 4


def test_a_write_that_autograd_would_refuse_in_a_plain_weight_is_refused():
    module = partial()
    before = module.weight.detach().clone()
    for write in (WRITES["fill_"], WRITES["row view"], WRITES["item"]):
        with pytest.raises(fl.PartialTensorError, match=r"Do it under `torch.no_grad\(\)`"):
            write(module.weight)
    assert torch.equal(module.weight.detach().clone(), before)


def test_a_numpy_array_of_it_cannot_be_written_to():
    module = partial()
    array = module.weight.detach().numpy()
    assert np.array_equal(array, module.weight.detach().clone().numpy())
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_writing_one_row_keeps_the_float32_digits_of_the_others():
    module = nn.Embedding(6, 4).to(torch.bfloat16)
    fl.train_only(module, {"weight": fl.rows(ROWS, dtype=torch.float32)})
    with torch.no_grad():
        module.weight_learned.fill_(1 + 2**-12)
        module.weight[1] = 9.0
    assert module.weight_learned.tolist() == [[1 + 2**-12] * 4, [9.0] * 4]


def test_it_describes_itself_as_the_whole_tensor_without_merging(monkeypatch):
    module = partial()
    monkeypatch.setattr(fl.PartialTensor, "merged", lambda self: pytest.fail("merged"))
    weight = module.weight
    assert weight.shape == (6, 4)
    assert (weight.size(0), weight.dim(), weight.numel(), len(weight)) == (6, 2, 24, 6)
    assert (weight.dtype, weight.device.type, weight.is_floating_point()) == (torch.float32, "cpu", True)
    assert weight.requires_grad
    assert isinstance(weight, nn.Parameter)
    assert repr(weight) == str(weight) == f"{weight}" == "PartialTensor(6 x 4, float32, 2 of 6 rows learn)"
    module(torch.tensor([1, 2]))
    F.linear(torch.ones(4), weight)
    F.embedding_bag(torch.tensor([[1, 2]]), weight)


def test_any_other_operation_is_right_on_the_merged_tensor():
    module = partial()
    full = module.weight.detach().clone().requires_grad_()
    torch.manual_seed(1)
    x = torch.randn(4)

    def use(w):
        return ((w @ x).sin() * w.norm(dim=1)).sum() + w[ROWS].exp().sum() + torch.cat([w, w]).std() + w[3].sum()

    use(full).backward()
    loss = use(module.weight)
    loss.backward()
    torch.testing.assert_close(loss, use(full).detach())
    torch.testing.assert_close(module.weight.grad, full.grad[ROWS])


def test_requires_grad_and_grad_are_those_of_the_learned_part():
    module = partial()
    module(torch.tensor([3, 0])).sum().backward()
    assert module.weight.grad is module.weight_learned.grad
    module.weight.grad = None
    assert module.weight_learned.grad is None
    module.weight.requires_grad_(False)
    assert not module.weight_learned.requires_grad
    module.weight.requires_grad = True
    assert module.weight_learned.requires_grad
    assert not module.weight.detach().requires_grad


@pytest.mark.parametrize(
    ("use", "says"),
    [
        (lambda m: m.weight.register_hook(print), "Register it on its learned part: weight.learned."),
        (lambda m: m.weight.register_post_accumulate_grad_hook(print), "Register it on its learned part"),
        (lambda m: m.weight.data.resize_(7, 4), "cannot be resized"),
        (lambda m: setattr(m.weight, "data", torch.zeros(7, 4)), "To change the shape, call fl.merge(model) first."),
        (lambda m: setattr(m, "weight", nn.Parameter(torch.zeros(6, 4))), "a new Parameter would replace a partial"),
        (lambda m: setattr(m, "weight", None), "a new Parameter would replace a partial"),
        (lambda m: F.embedding(torch.tensor([1]), m.weight, max_norm=1.0), "max_norm=1.0 rewrites frozen rows"),
        (lambda m: F.embedding_bag(torch.tensor([[1]]), m.weight, max_norm=1.0), "max_norm=1.0 rewrites frozen rows"),
    ],
)
def test_a_use_that_would_be_silently_lost_is_refused(use, says):
    module = partial()
    before = module.weight.detach().clone()
    with pytest.raises(fl.PartialTensorError) as error:
        use(module)
    assert says in str(error.value)
    assert torch.equal(module.weight.detach().clone(), before)


def test_an_optimizer_refuses_the_partial_tensor_itself():
    with pytest.raises(ValueError, match="non-leaf"):
        torch.optim.SGD([partial().weight], lr=0.1)


def test_tying_a_plain_module_to_a_partial_tensor_is_refused():
    module, other = partial(), nn.Linear(4, 6)
    before = other.weight
    for weight in (module.weight, module.weight.data):
        with pytest.raises(fl.PartialTensorError, match=r"Call fl.merge\(model\)"):
            other.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
        assert other.weight is before


def test_a_compiled_function_may_read_but_not_write():
    module = partial()

    def write():
        with torch.no_grad():
            module.weight.fill_(1.0)

    before = module.weight.detach().clone()
    with pytest.raises(Exception, match="cannot be written to in a compiled function"):
        torch.compile(write, backend="eager", fullgraph=True)()
    assert torch.equal(module.weight.detach().clone(), before)


def test_gradients_scaled_by_frequency_are_those_of_torch():
    module = nn.Embedding(6, 4, scale_grad_by_freq=True)
    ids = torch.tensor([3, 3, 0, 1])
    module(ids).sum().backward()
    dense = module.weight.grad
    fl.train_only(module, {"weight": fl.rows(ROWS)})
    module(ids).sum().backward()
    assert torch.equal(module.weight.grad, dense[ROWS])
    assert dense[3].tolist() == [1.0] * 4
