"""clip_grad_norm_ on sparse gradients gives the same as torch's on the equivalent dense ones."""

import copy
import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import frostline as fl

INF, NAN = float("inf"), float("nan")
IDS = torch.tensor([[5, 1, 5], [3, 1, 5]])


def model(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(9, 4, sparse=True, dtype=dtype), nn.Linear(4, 2, dtype=dtype))


def with_gradients(ids=IDS, dtype=torch.float64):
    """Return two models with the same gradients; those of the first one's table are sparse."""
    net = model(dtype)
    (net(ids).pow(2).sum() * 10).backward()
    dense = copy.deepcopy(net)
    for ours, theirs in zip(net.parameters(), dense.parameters(), strict=True):
        theirs.grad = ours.grad.to_dense().clone()
    return net, dense


def test_the_signature_is_torchs():
    ours, theirs = (inspect.signature(f).parameters for f in (fl.clip_grad_norm_, torch.nn.utils.clip_grad_norm_))
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


@settings(max_examples=30, deadline=None)
@given(
    ids=st.lists(st.integers(0, 8), max_size=12),
    norm_type=st.sampled_from([2.0, 1.0, 3.5, INF, 0.5, 2]),
    max_norm=st.sampled_from([0.01, 1.0, 1e6]),
    foreach=st.sampled_from([None, False, True]),
)
def test_norm_and_gradients_are_those_of_torch_on_dense_gradients(ids, norm_type, max_norm, foreach):
    net, dense = with_gradients(torch.tensor(ids, dtype=torch.int64))
    entries = net[0].weight.grad._nnz()
    norm = fl.clip_grad_norm_(net.parameters(), max_norm, norm_type, foreach=foreach)
    expected = torch.nn.utils.clip_grad_norm_(dense.parameters(), max_norm, norm_type)
    torch.testing.assert_close(norm, expected, rtol=1e-12, atol=1e-12)
    assert net[0].weight.grad.is_sparse
    assert net[0].weight.grad._nnz() == entries
    for ours, theirs in zip(net.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.to_dense(), theirs.grad, rtol=1e-12, atol=1e-12)


def test_duplicates_are_summed_before_the_norm_is_taken():
    table = nn.Embedding(9, 1, sparse=True)
    (table(torch.tensor([2, 2, 5])) * torch.tensor([[3.0], [-3.0], [4.0]])).sum().backward()
    assert fl.clip_grad_norm_(table.parameters(), 2.0).item() == 4.0
    assert table.weight.grad.to_dense().flatten().tolist() == pytest.approx([0, 0, 0, 0, 0, 2, 0, 0, 0], rel=1e-6)
    assert table.weight.grad._values().flatten().tolist() == pytest.approx([1.5, -1.5, 2], rel=1e-6)


def test_gradients_below_the_limit_keep_every_bit_and_those_above_are_scaled_to_it():
    net, _ = with_gradients()
    before = [parameter.grad.to_dense().clone() for parameter in net.parameters()]
    fl.clip_grad_norm_(net.parameters(), 1e9)
    assert all(torch.equal(p.grad.to_dense(), old) for p, old in zip(net.parameters(), before, strict=True))
    fl.clip_grad_norm_(net.parameters(), 0.5)
    assert fl.clip_grad_norm_(net.parameters(), 0.5).item() == pytest.approx(0.5, rel=1e-5)
    assert all((p.grad.to_dense() != old).any() for p, old in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("wrong", [INF, NAN])
def test_a_norm_that_is_not_finite_raises_before_anything_is_scaled_or_passes_as_in_torch(wrong):
    net, dense = with_gradients()
    for model_ in (net, dense):
        model_[1].bias.grad[0] = wrong
    before = net[0].weight.grad.to_dense()
    with pytest.raises(RuntimeError, match="is non-finite, so it cannot be clipped"):
        fl.clip_grad_norm_(net.parameters(), 1.0, error_if_nonfinite=True)
    assert torch.equal(net[0].weight.grad.to_dense(), before)
    norm = fl.clip_grad_norm_(net.parameters(), 1.0)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(dense.parameters(), 1.0), equal_nan=True)
    named = torch.tensor([1, 3, 5])  # a row that the sparse gradient does not name has nothing to become NaN
    torch.testing.assert_close(net[0].weight.grad.to_dense()[named], dense[0].weight.grad[named], equal_nan=True)
    for ours, theirs in zip(net[1].parameters(), dense[1].parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, equal_nan=True)


def test_one_parameter_none_without_gradient_and_a_generator_are_accepted_as_in_torch():
    net, dense = with_gradients()
    alone = fl.clip_grad_norm_(net[0].weight, 1.0)
    torch.testing.assert_close(alone, torch.nn.utils.clip_grad_norm_(dense[0].weight, 1.0), rtol=1e-12, atol=0)
    net[1].bias.grad = dense[1].bias.grad = None
    norm = fl.clip_grad_norm_((p for p in net.parameters()), 0.1)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(dense.parameters(), 0.1), rtol=1e-5, atol=0)
    assert fl.clip_grad_norm_([nn.Parameter(torch.ones(2))], 1.0).item() == 0.0
    assert fl.clip_grad_norm_([], 1.0).item() == 0.0


def test_dense_gradients_alone_are_scaled_to_torchs_bits():
    _, dense = with_gradients()
    other = copy.deepcopy(dense)
    for ours, theirs in zip(dense.parameters(), other.parameters(), strict=True):
        theirs.grad = ours.grad.clone()
    assert torch.equal(
        fl.clip_grad_norm_(dense.parameters(), 0.3), torch.nn.utils.clip_grad_norm_(other.parameters(), 0.3)
    )
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(dense.parameters(), other.parameters(), strict=True))


def test_a_clipped_step_over_a_partial_table_is_the_dense_step():
    results = []
    for sparse in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(9, 4, sparse=sparse, dtype=torch.float64), nn.Linear(4, 2).double())
        plan = fl.train_only(net, {"0.weight": fl.rows([1, 5, 7]), "1.*": fl.everything})
        optimizer = fl.optim.RowSGD(plan.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (net(IDS).pow(2).sum() * 10).backward()
            norm = fl.clip_grad_norm_(plan.parameters(), 0.5)
            assert norm > 0.5
            optimizer.step()
        results.append(net[0].weight.detach().clone())
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
