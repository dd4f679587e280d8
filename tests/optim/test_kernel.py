"""The C++ kernel gives the same bits as plain torch, and `backend()` says which is in use."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import frostline as fl
from frostline.optim import kernel, reference

needs_compiler = pytest.mark.usefixtures("cpp_compiler")
OURS = {
    "sgd": (fl.optim.RowSGD, {"lr": st.floats(0, 2), "weight_decay": st.sampled_from([0, 0.3])}),
    "momentum": (
        fl.optim.RowSGD,
        {
            "lr": st.floats(0, 2),
            "momentum": st.floats(0.01, 1),
            "dampening": st.sampled_from([0, 0.4]),
            "weight_decay": st.sampled_from([0, 0.3]),
        },
    ),
    "nesterov": (fl.optim.RowSGD, {"lr": st.floats(0, 2), "momentum": st.floats(0.01, 1), "nesterov": st.just(True)}),
    "adagrad": (
        fl.optim.RowAdagrad,
        {
            "lr": st.floats(0, 2),
            "lr_decay": st.sampled_from([0, 0.1]),
            "weight_decay": st.sampled_from([0, 0.3]),
            "rowwise": st.booleans(),
        },
    ),
    "adamw": (
        fl.optim.RowAdamW,
        {
            "lr": st.floats(0, 2),
            "betas": st.tuples(st.floats(0, 0.999), st.floats(0, 0.99999)),
            "eps": st.sampled_from([0, 1e-8, 1e-3]),
            "weight_decay": st.sampled_from([0, 0.3]),
            "amsgrad": st.booleans(),
            "step_per_row": st.booleans(),
        },
    ),
}


def same_bits(a, b):
    """Return whether two tensors are equal to the bit, including the sign of zero but not that of NaN."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    integers = {4: torch.int32, 8: torch.int64}[a.element_size()]
    valid = ~a.isnan()
    return torch.equal(valid, ~b.isnan()) and torch.equal(a[valid].view(integers), b[valid].view(integers))


def train(backend, make, options, start, gradients):
    """Step over the gradients under one backend; return the parameter and its state."""
    weight = nn.Parameter(start.clone())
    optimizer = make([weight], **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FROSTLINE_BACKEND", backend)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
    return [weight.detach(), *optimizer.state[weight].values()]


@pytest.mark.filterwarnings("ignore:.*is dense, so all its")
@needs_compiler
@pytest.mark.parametrize(("make", "options"), OURS.values(), ids=OURS.keys())
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_kernel_gives_the_bits_of_plain_torch(make, options, data):
    chosen = {name: data.draw(strategy, label=name) for name, strategy in options.items()}
    chosen["maximize"] = data.draw(st.booleans(), label="maximize")
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    shape = data.draw(st.sampled_from([(1,), (7,), (1, 5), (40, 1), (9, 3), (600, 16), (9, 64), (30, 67), (8, 2, 5)]))
    seeded = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    special = data.draw(st.lists(st.sampled_from([math.inf, -math.inf, math.nan, 0.0, -0.0, 1e-45, 1e38]), max_size=2))
    gradients = []
    for _ in range(data.draw(st.integers(1, 4))):
        count = data.draw(st.sampled_from([0, 1, 5, 40, 700]))
        ids = torch.randint(shape[0], (count,), generator=seeded)
        values = torch.randn(count, *shape[1:], generator=seeded, dtype=dtype)
        for value in special:
            values[torch.rand(values.shape, generator=seeded) < 0.05] = value
        values[torch.rand(count, generator=seeded) < 0.1] = 0
        gradient = torch.sparse_coo_tensor(ids[None], values, shape, check_invariants=True)
        gradients.append(gradient.to_dense() if data.draw(st.integers(0, 5)) == 0 else gradient)
    start = torch.randn(shape, generator=seeded, dtype=dtype)
    expected = train("torch", make, chosen, start, gradients)
    result = train("c++", make, chosen, start, gradients)
    assert len(result) == len(expected)
    assert all(same_bits(a, b) for a, b in zip(result, expected, strict=True))


@needs_compiler
@pytest.mark.parametrize("name", OURS)
def test_with_the_kernel_plain_torch_does_no_arithmetic(name, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("plain torch was called")

    for function in ("sgd_", "adagrad_", "adamw_"):
        monkeypatch.setattr(reference, function, fail)
    make = OURS[name][0]
    gradient = torch.sparse_coo_tensor(torch.tensor([[2, 0, 2]]), torch.ones(3, 4), (5, 4), check_invariants=True)
    start = torch.randn(5, 4)
    after, *_ = train("c++", make, {}, start, [gradient])
    assert (after[[0, 2]] != start[[0, 2]]).all()
    assert torch.equal(after[[1, 3, 4]], start[[1, 3, 4]])
    with pytest.raises(AssertionError, match="plain torch was called"):
        train("torch", make, {}, start, [gradient])


@needs_compiler
@pytest.mark.parametrize("ids", [[0, 5], [-1, 0], [2**40, 1]])
@pytest.mark.parametrize("backend", ["torch", "c++"])
def test_an_id_outside_the_table_is_an_error_before_any_value_changes(ids, backend, monkeypatch):
    monkeypatch.setenv("FROSTLINE_BACKEND", backend)
    weight = nn.Parameter(torch.ones(5, 4))
    optimizer = fl.optim.RowAdamW([weight])
    weight.grad = torch.sparse_coo_tensor(torch.tensor([ids]), torch.ones(2, 4), (5, 4), check_invariants=False)
    with pytest.raises(ValueError, match="the table has 5 rows"):
        optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(5, 4))
    weight.grad = torch.sparse_coo_tensor(torch.tensor([[0, 4]]), torch.ones(2, 4), (5, 4), check_invariants=True)
    optimizer.step()
    assert (weight.detach()[[0, 4]] != 1).all()


@needs_compiler
def test_autograd_notices_that_the_kernel_changed_a_tensor(monkeypatch):
    monkeypatch.setenv("FROSTLINE_BACKEND", "c++")
    weight = nn.Parameter(torch.ones(3, 2))
    optimizer = fl.optim.RowSGD([weight], lr=0.1)
    loss = (weight * weight).sum()
    weight.grad = torch.ones(3, 2)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@needs_compiler
def test_a_table_that_the_kernel_does_not_support_uses_plain_torch(monkeypatch):
    monkeypatch.setenv("FROSTLINE_BACKEND", "c++")
    start, ids = torch.randn(6, 4), torch.tensor([[1, 4, 1]])
    gradient = torch.sparse_coo_tensor(ids, torch.randn(3, 4), (6, 4), check_invariants=True)
    results = []
    for table in (start.clone(), start.t().contiguous().t()):  # the second is stored column by column
        weight = nn.Parameter(table)
        optimizer = fl.optim.RowAdamW([weight])
        for _ in range(2):
            weight.grad = gradient
            optimizer.step()
        results.append(weight.detach())
    assert not results[1].is_contiguous()
    assert same_bits(results[0], results[1].contiguous())
    assert (results[0][[1, 4]] != start[[1, 4]]).all()


def test_without_a_compiler_plain_torch_is_used_and_the_reason_is_given(fresh_kernel, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    why = "no C++ compiler found (c++, g++ or clang++; $CXX names another)"
    assert kernel.backend() == ("torch", why)
    assert str(kernel.backend()) == f"torch: {why}"
    weight = nn.Parameter(torch.ones(2, 1))
    weight.grad = torch.ones_like(weight)
    fl.optim.RowSGD([weight], lr=0.5).step()
    assert weight.detach().flatten().tolist() == [0.5, 0.5]
    monkeypatch.setenv("FROSTLINE_BACKEND", "c++")
    says = f"FROSTLINE_BACKEND: c++ cannot be used here: {why}. Install a C++ compiler (apt install g++), or unset it."
    with pytest.raises(fl.MissingExtraError, match=f"^{re.escape(says)}$"):
        kernel.backend()


def test_the_environment_chooses_and_a_wrong_choice_is_an_error(monkeypatch):
    monkeypatch.setenv("FROSTLINE_BACKEND", "torch")
    assert kernel.backend() == ("torch", "FROSTLINE_BACKEND asks for it")
    monkeypatch.setenv("FROSTLINE_BACKEND", "cuda")
    says = "FROSTLINE_BACKEND: expected torch or c++, got 'cuda'. Set it to one, or unset it."
    with pytest.raises(fl.FrostlineError, match=f"^{re.escape(says)}$"):
        kernel.backend()
