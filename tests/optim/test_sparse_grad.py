"""Which rows a sparse gradient uses."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frostline.optim.sparse_grad import _unique_rows, used_rows


@given(ids=st.lists(st.integers(0, 50), max_size=30), size=st.sampled_from([51, 2**31 - 1, 2**31]))
def test_unique_rows_are_sorted_and_indexed_whatever_the_size_of_the_table(ids, size):
    ids = torch.tensor(ids, dtype=torch.int64)
    rows, index = _unique_rows(ids, size)
    assert rows.tolist() == sorted(set(ids.tolist()))
    assert torch.equal(rows[index], ids)
    assert rows.dtype == index.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_rows_whose_sum_is_zero_are_dropped_and_nan_and_the_smallest_value_are_not_zero(dtype):
    tiny = torch.finfo(dtype).tiny
    entries = {7: [1.0, -2.0], 1: [float("nan"), 0.0], 3: [0.0, tiny], 4: [-0.0, 0.0], 6: [float("inf"), 0.0]}
    ids = [7, *entries, 2, 2]
    values = torch.tensor([[-1.0, 2.0], *entries.values(), [5.0, 0.0], [-5.0, 1.0]], dtype=dtype)
    grad = torch.sparse_coo_tensor([ids], values, (9, 2), check_invariants=True)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for kind in (grad, grad.coalesce()):
        rows, summed = used_rows(kind, wide)
        assert rows.tolist() == [1, 2, 3, 6]
        assert summed.dtype == wide
        torch.testing.assert_close(summed[1:].tolist(), [[0.0, 1.0], [0.0, tiny], [float("inf"), 0.0]])


def test_a_dense_gradient_uses_every_row_and_is_not_copied():
    grad = torch.zeros(4, 2)
    rows, same = used_rows(grad, torch.float32)
    assert rows is None
    assert same is grad
