"""Tables: with sparse gradients, in half precision, in a mapped file."""

import copy
import functools

import pytest
import torch
from torch import nn

import frostline as fl

from .cases import OPTIMIZERS, D, Net, V, steps

SPARSE = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "sparse adam": functools.partial(torch.optim.SparseAdam, lr=0.1),
    "adagrad": functools.partial(torch.optim.Adagrad, lr=0.1),
    "row sgd": OPTIMIZERS["row sgd"],
    "row adagrad": functools.partial(fl.optim.RowAdagrad, lr=0.1, rowwise=True, lr_decay=0.1),
    "row adamw": OPTIMIZERS["row adamw"],
}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own Adagrad leaves them to their default
@pytest.mark.parametrize("name", SPARSE)
def test_with_sparse_gradients_rows_keep_their_state_too(name):
    torch.manual_seed(0)
    model = nn.Embedding(V, D, sparse=True)
    oracle = copy.deepcopy(model)
    theirs = SPARSE[name](oracle.parameters())
    ours = SPARSE[name](fl.train_only(model, {"weight": fl.rows([7, 3, 0, 5])}).parameters())
    start = model.weight.detach().clone()
    for step, selection in enumerate([None, None, fl.rows([5, 1, 7, 3]), None, fl.everything, None, fl.rows([3, 7])]):
        if selection is not None:
            fl.train_only(model, {"weight": selection}).carry(ours)
        ids = torch.tensor([[7, 5, 7, 1], [3, 0, 11, 3], [7, 3, 2, 5]][step % 3])
        for module, optimizer in ((model, ours), (oracle, theirs)):
            optimizer.zero_grad()
            (module(ids) ** 2).sum().backward()
            optimizer.step()
    after = model.weight.detach().clone()
    if name == "sgd":  # torch sums up its sparse momentum when the list of it is long, so in another order
        torch.testing.assert_close(after[[7, 3]], oracle.weight.detach()[[7, 3]])
    else:
        assert torch.equal(after[[7, 3]], oracle.weight[[7, 3]])
    assert (after != start)[[7, 3, 5, 1]].all()
    assert torch.equal(after[[4, 6, 8, 9, 10]], start[[4, 6, 8, 9, 10]])


def test_a_float32_part_over_a_half_precision_table_keeps_its_state_and_its_digits():
    torch.manual_seed(0)
    oracle, model = Net(), Net(torch.bfloat16)
    model.load_state_dict(oracle.state_dict())
    oracle.load_state_dict(model.state_dict())
    theirs = torch.optim.Adam(oracle.parameters())
    learns = {"embed.weight": fl.rows([7, 3], dtype=torch.float32)}
    ours = torch.optim.Adam(fl.train_only(model, learns).parameters())
    for more in (None, {"embed.weight": fl.rows([3, 5, 7], dtype=torch.float32)}):
        if more is not None:
            fl.train_only(model, more).carry(ours)
        steps(model, ours)
        steps(oracle, theirs)
    learned = model.embed.weight.learned
    # the loss sees the joined tensor, rounded to bfloat16, so the gradients are near, not equal; the step is float32's
    assert {s.dtype for s in ours.state[learned].values()} == {torch.float32}
    torch.testing.assert_close(learned[2], oracle.embed.weight[7], atol=1e-5, rtol=0)
    kept = learned.detach().clone()
    fl.train_only(model, {"embed.weight": fl.rows([7])}).carry(ours)  # in the table's own dtype from now on
    state = ours.state[model.embed.weight.learned]
    assert state["exp_avg"].dtype == torch.bfloat16
    assert torch.equal(model.embed.weight.learned[0], kept[2].bfloat16())
    fl.train_only(model, {"embed.weight": fl.rows([7], dtype=torch.float32)}).carry(ours)
    assert torch.equal(ours.state[model.embed.weight.learned]["exp_avg"], state["exp_avg"].float())
    steps(model, ours, 1)


def test_rows_of_a_mapped_table_keep_their_state(tmp_path):
    from safetensors.torch import save_file

    save_file({"table": torch.randn(V, D)}, tmp_path / "table.safetensors")
    embed = fl.mapped_embedding(tmp_path / "table.safetensors")
    start = embed.weight.clone()
    dense = nn.Embedding(V, D, _weight=start.clone())
    theirs = torch.optim.Adam(dense.parameters(), lr=0.1)
    ours = torch.optim.Adam(fl.train_only(embed, {"weight": fl.rows([7, 3])}).parameters(), lr=0.1)
    for rows in (None, fl.rows([3, 5, 7])):
        if rows is not None:
            fl.train_only(embed, {"weight": rows}).carry(ours)
        for _ in range(3):
            for module, optimizer in ((embed, ours), (dense, theirs)):
                optimizer.zero_grad()
                (module(torch.arange(V)) ** 2).sum().backward()
                optimizer.step()
    after = embed.weight.merged()
    assert torch.equal(after[[7, 3]], dense.weight[[7, 3]])
    others = [0, 1, 2, 4, 6, 8, 9, 10, 11]
    assert torch.equal(after[others], start[others])
    assert (after[[7, 3, 5]] != start[[7, 3, 5]]).all()
