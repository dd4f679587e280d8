"""What cannot work raises an error of one line when it is used, and nothing has moved."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import frostline as fl

from .run import bits


def partial_table(selection: object, **options: object) -> tuple[nn.Embedding, fl.Plan]:
    torch.manual_seed(0)
    table = nn.Embedding(7, 4, **options)
    return table, fl.train_only(table, {"weight": selection})


def test_muon_refuses_single_entries_when_it_is_made() -> None:
    mask = torch.zeros(7, 4, dtype=torch.bool)
    mask[1, 2] = True
    _, plan = partial_table(fl.entries(mask))
    with pytest.raises(ValueError, match="only supports 2D parameters"):
        torch.optim.Muon(plan.parameters())
    _, plan = partial_table(fl.rows([1]))
    assert torch.optim.Muon(plan.parameters()).param_groups[0]["params"][0].shape == (1, 4)


@pytest.mark.parametrize("selection", [fl.rows([1, 3]), fl.everything])
def test_sparse_adam_refuses_a_dense_gradient_and_moves_nothing(selection: object) -> None:
    table, plan = partial_table(selection)
    before = table.weight.detach().clone()
    optimizer = torch.optim.SparseAdam(plan.parameters(), lr=0.1)
    table(torch.tensor([1, 3])).sum().backward()
    with pytest.raises(RuntimeError, match="SparseAdam does not support dense gradients"):
        optimizer.step()
    assert torch.equal(table.weight.detach().clone(), before)


def test_decay_on_a_sparse_gradient_is_refused_by_torch_and_done_by_the_row_optimizers() -> None:
    table, plan = partial_table(fl.rows([1, 3]), sparse=True)
    before = table.weight.detach().clone()
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="weight_decay option is not compatible with sparse gradients"):
        torch.optim.Adagrad(plan.parameters(), weight_decay=0.1).step()
    assert torch.equal(table.weight.detach().clone(), before)
    fl.optim.RowAdagrad(plan.parameters(), weight_decay=0.1).step()
    after = table.weight.detach().clone()
    assert (after[1] != before[1]).all()
    assert torch.equal(bits(after)[[0, 2, 3, 4, 5, 6]], bits(before)[[0, 2, 3, 4, 5, 6]])


def test_max_norm_is_refused_by_the_plan_and_when_it_is_set_later() -> None:
    with pytest.raises(fl.SelectionError, match=r"weight: max_norm=1.0 rewrites frozen rows in the forward. Set max_"):
        partial_table(fl.rows([1]), max_norm=1.0)
    table, _ = partial_table(fl.rows([1]))
    before = table.weight.detach().clone()
    table.max_norm = 1.0
    with pytest.raises(fl.PartialTensorError, match=r"max_norm=1.0 rewrites frozen rows"):
        table(torch.tensor([1, 2]))
    assert torch.equal(table.weight.detach().clone(), before)
    table.max_norm = None
    assert table(torch.tensor([1, 2])).shape == (2, 4)


def test_nothing_to_learn_is_an_empty_list_that_optimizers_refuse() -> None:
    _, plan = partial_table(fl.rows([]))
    assert plan.parameters() == []
    with pytest.raises(ValueError, match="empty parameter list"):
        torch.optim.AdamW(plan.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_torchs_fused_sgd_on_a_cpu_moves_no_half_precision_number_partial_or_plain(dtype: torch.dtype) -> None:
    """A fault of torch's (2.13): the reason why no such case is drawn. Once it is gone, this fails: draw them then."""
    for model, selection in ((nn.Embedding(4, 4), fl.everything), (nn.Embedding(9, 4), fl.rows([1, 3, 5, 7]))):
        plan = fl.train_only(model.to(dtype), {"weight": selection})
        (learned,) = plan.parameters()
        before = learned.detach().clone()
        learned.grad = torch.ones_like(learned)
        torch.optim.SGD(plan.parameters(), lr=0.5, fused=True).step()
        assert torch.equal(learned, before)
        torch.optim.SGD(plan.parameters(), lr=0.5).step()
        assert (learned != before).all()


def test_torchs_nadam_loads_its_own_state_inexactly_in_float64() -> None:
    """Another (2.13): it casts the product of its momenta; the reason why it is not drawn with a copy or a load."""

    def make(values: torch.Tensor) -> tuple[nn.Parameter, torch.optim.Optimizer]:
        parameter = nn.Parameter(values.clone())
        return parameter, torch.optim.NAdam([parameter], lr=0.1)

    uninterrupted, optimizer = make(torch.ones(3, dtype=torch.float64))
    for gradient in (0.3, 0.7):
        uninterrupted.grad = torch.full_like(uninterrupted, gradient)
        optimizer.step()
    interrupted, resumed = make(uninterrupted.detach())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for parameter, each in ((uninterrupted, optimizer), (interrupted, resumed)):
        for gradient in (0.2, 0.9):
            parameter.grad = torch.full_like(parameter, gradient)
            each.step()
    assert not torch.equal(uninterrupted, interrupted)
    torch.testing.assert_close(uninterrupted, interrupted, rtol=1e-6, atol=1e-6)
