"""Rows are chosen, and the batch has none of them.

Seen: tokens were added and the table resized, and that seemed to be enough.
Fix: see which ids the data has; a row that is not looked up has a gradient of zero.
Source: https://github.com/huggingface/transformers/issues/7879
"""

import torch
from torch import nn

import frostline as fl

EXPECTED = {"embed.weight": "zero gradient", "head.*": "learns"}


def make():
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "head": nn.Linear(4, 2)})
    plan = fl.train_only(model, {"embed.weight": fl.rows([7, 8]), "head.*": fl.everything})
    ids, y = torch.arange(7), torch.randint(2, (7,))

    def loss_fn():
        return nn.functional.cross_entropy(model["head"](model["embed"](ids)), y)

    return model, loss_fn, torch.optim.Adam(plan.parameters())
