"""Selections are values; an invalid one raises an error of one line."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import frostline as fl


def learns(selection, rows=12):
    module = nn.Embedding(rows, 2)
    fl.train_only(module, {"weight": selection})
    return module.weight.learned_indices.index[0].tolist() if isinstance(module.weight, fl.PartialTensor) else []


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ([7, 3, 0], [7, 3, 0]),
        ((7, 3), [7, 3]),
        ({5}, [5]),
        (range(2, 8, 3), [2, 5]),
        ((i for i in [4, 2]), [4, 2]),
        (torch.tensor([7, 3]), [7, 3]),
        (torch.tensor([7, 3], dtype=torch.int32), [7, 3]),
        (np.array([7, 3], dtype=np.uint8), [7, 3]),
        (np.arange(12)[::-4], [11, 7, 3]),
        (slice(9, None), [9, 10, 11]),
        (slice(-2, None), [10, 11]),
        (torch.arange(12) % 5 == 1, [1, 6, 11]),
        ((np.arange(12) % 5 == 1)[::-1], [0, 5, 10]),
        ([True] + [False] * 11, [0]),
        ([np.int64(3), 1], [3, 1]),
        ([], []),
        (slice(12, None), []),
    ],
)
def test_rows_take_any_iterable_of_ints_a_mask_or_a_slice_in_the_callers_order(given, ids):
    assert learns(fl.rows(given)) == ids


def test_all_rows_may_learn_in_part():
    assert learns(fl.rows(range(12))) == list(range(12))


def test_a_generator_is_read_once_so_that_the_selection_can_be_used_again():
    selection = fl.rows(i for i in [4, 2])
    assert learns(selection) == learns(selection) == [4, 2]


def test_entries_take_a_mask_with_negative_strides_and_keep_their_own_copy():
    mask = np.zeros((3, 4), dtype=bool)
    mask[0, 1] = True
    selection = fl.entries(mask[::-1, ::-1])
    mask[:] = True
    module = nn.Linear(4, 3)
    fl.train_only(module, {"weight": selection})
    assert [index.tolist() for index in module.weight.learned_indices.index] == [[2], [2]]


@pytest.mark.parametrize(
    ("selection", "error", "says"),
    [
        (
            lambda: fl.rows([3, 11, -1]),
            fl.RowError,
            "2 of 3 ids are outside the table: 11, -1. The table has 10 rows, ",
        ),
        (lambda: fl.rows([10]), fl.RowError, "so ids run from 0 to 9. If your ids start at 1, pass `rows - 1`."),
        (lambda: fl.rows([3, 3]), fl.RowError, "listed more than once: 3"),
        (lambda: fl.rows([1.5]), fl.RowError, "expected integers, got [1.5]"),
        (lambda: fl.rows(["the"]), fl.RowError, "expected integers, got ['the']"),
        (lambda: fl.rows(torch.tensor([1.0])), fl.RowError, "got torch.float32 of shape (1,)"),
        (lambda: fl.rows([[1, 2]]), fl.RowError, "of shape (1, 2)"),
        (lambda: fl.rows(3), fl.RowError, "expected a list of row ids, a bool mask or a slice, got 3. Pass rows([3])"),
        (lambda: fl.rows(slice(5, 11)), fl.RowError, "the slice ends at 11, outside the table. The table has 10 rows."),
        (lambda: fl.rows(torch.ones(9) > 0), fl.ShapeError, "the mask has shape (9,), but the table has 10 rows."),
        (lambda: fl.entries(torch.ones(10, 3) > 0), fl.ShapeError, "the mask has shape (10, 3), the tensor (10, 4)."),
        (lambda: fl.rows([2]), fl.RowError, "row 2 is the padding row (padding_idx=2)"),
        (lambda: fl.rows(slice(None)), fl.RowError, "or pass rows(..., learn_padding=True)."),
        (lambda: fl.entries(torch.ones(10, 4) > 0), fl.ShapeError, "the mask is True in row 2, the padding row"),
        (lambda: [1, 2], TypeError, "expected a selection, got [1, 2]. Write fl.rows([1, 2])."),
    ],
)
def test_an_invalid_selection_names_the_tensor_the_value_and_the_fix(selection, error, says):
    module = nn.Embedding(10, 4, padding_idx=2)
    before = dict(module.named_parameters())
    with pytest.raises(error, match=re.escape(says)) as caught:
        fl.train_only(module, {"weight": selection()})
    assert str(caught.value).startswith("weight: ")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError | TypeError)
    assert type(module) is nn.Embedding
    assert dict(module.named_parameters()).keys() == before.keys()
    assert module.weight.requires_grad


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: fl.entries(torch.tensor([0, 1])), TypeError, "not bool. Pass `entries(mask != 0)` for a 0/1 mask."),
        (lambda: fl.rows([1], dtype=torch.int64), fl.SelectionError, "dtype: torch.int64 cannot learn."),
    ],
)
def test_a_selection_that_is_wrong_for_any_tensor_is_refused_at_once(make, error, says):
    with pytest.raises(error, match=re.escape(says)):
        make()


@pytest.mark.parametrize("options", [{}, {"sparse": True}, {"scale_grad_by_freq": True}], ids=str)
@pytest.mark.parametrize("padding", [2, -8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_padding_row_learns_if_asked_for(options, padding, dtype):
    module = nn.Embedding(10, 4, padding_idx=padding, dtype=dtype, **options)
    fl.train_only(module, {"weight": fl.rows([2, 5], learn_padding=True)})
    before = module.weight.detach().clone()
    module(torch.tensor([2, 3, 2])).sum().backward()
    gradient = module.weight.grad.to_dense()
    assert torch.equal(gradient[0], torch.full((4,), 1 if "scale_grad_by_freq" in options else 2, dtype=dtype))
    with torch.no_grad():
        module.weight_learned -= gradient
    assert (module.weight.detach().clone() != before).any(1).nonzero().flatten().tolist() == [2]


def test_a_scalar_has_no_rows():
    model = nn.Module()
    model.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(fl.RowError, match="scale: rows: a tensor without dimensions has no rows"):
        fl.train_only(model, {"scale": fl.rows([0])})
    plan = fl.train_only(model, {"scale": fl.entries(torch.tensor(True))})
    assert plan.learned == 1
