"""Entries that learn from the start end with the same bits as in a run in which everything learns."""

import copy

import pytest
import torch

import frostline as fl

from .cases import FUSED, NAMES, OPTIMIZERS, Net, entries_of, steps, values

# Plans one after another; whatever learns under all of them is compared with a run in which all learns all along.
PLANS = {
    "rows, other rows in another order": [
        {"embed.weight": fl.rows([7, 3, 0, 5]), "*bias": fl.everything},
        {"embed.weight": fl.rows([5, 1, 7, 9, 3]), "*bias": fl.rows([1])},
        {"embed.weight": fl.rows([3, 7]), "*bias": fl.rows([0, 1])},
    ],
    "rows, everything, rows": [
        {"*": fl.rows([1, 0])},
        {"*": fl.everything},
        {"*": fl.rows([0])},
    ],
    "entries, other entries, rows": [
        {
            "embed.weight": entries_of("embed.weight", 3, 40, 41, 42, 43, 44),
            "conv.weight": entries_of("conv.weight", 1),
        },
        {"embed.weight": entries_of("embed.weight", 3, 42, 43, 71), "conv.weight": entries_of("conv.weight", 1, 11)},
        {"embed.weight": fl.rows([7, 0]), "conv.weight": fl.rows([0])},
        {"embed.weight": entries_of("embed.weight", 42, 3), "conv.*": fl.everything},
    ],
    "everything, entries, everything": [
        {"*": fl.everything},
        {"embed.weight": entries_of("embed.weight", 0, 5, 70), "conv.weight": fl.nothing, "*bias": fl.everything},
        {"*": fl.everything, "conv.weight": fl.rows([1])},
    ],
}


def learning(model):
    """For each tensor, a mask of what learns in the model now."""
    masks = {}
    for name in NAMES:
        weight = model.get_parameter(name)
        masks[name] = torch.full(weight.shape, weight.requires_grad)
        if isinstance(weight, fl.PartialTensor):
            masks[name] = torch.zeros(weight.shape, dtype=torch.bool).index_put_(
                weight.learned_indices.index, torch.tensor(True)
            )
    return masks


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in FUSED])
@pytest.mark.parametrize("plans", PLANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_still_learns_ends_with_the_bits_of_a_run_in_which_it_learned_all_along(name, plans, dtype):
    torch.manual_seed(0)
    model = Net(dtype)
    oracle = copy.deepcopy(model)
    theirs = OPTIMIZERS[name](oracle.parameters())
    start, always, ours = values(model), None, None
    for selections in PLANS[plans]:
        plan = fl.train_only(model, selections)
        if ours is None:
            ours = OPTIMIZERS[name](plan.parameters())
        else:
            plan.carry(ours)
        masks = learning(model)
        always = masks if always is None else {key: always[key] & masks[key] for key in NAMES}
        before = values(model)
        steps(model, ours)
        steps(oracle, theirs)
        after = values(model)
        for key, mask in masks.items():
            assert torch.equal(after[key][~mask], before[key][~mask])
            assert (after[key] != before[key])[mask].all()
    compared = 0
    for key, mask in always.items():
        assert torch.equal(after[key][mask], values(oracle)[key][mask])
        assert (after[key] != start[key])[mask].all()
        compared += int(mask.sum())
    assert compared >= 2


def test_the_optimizers_here_are_all_of_torch_that_treat_each_value_alone():
    tried = {make.func for make in OPTIMIZERS.values()}
    others = {"Adafactor", "LBFGS", "Muon", "SparseAdam", "Optimizer"}  # each has a test of its own
    known = {name for name in torch.optim.__all__ if isinstance(getattr(torch.optim, name), type)} - others
    assert {cls.__name__ for cls in tried if cls.__module__.startswith("torch.optim")} == known
