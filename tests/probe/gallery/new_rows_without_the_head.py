"""A plan for the new rows of the embedding forgets the head, which is not tied.

Seen: "you freeze all the layers: how does next-token prediction of the new token train?"
Fix: name the rows of the head too, and its bias.
Source: https://github.com/kohjingyu/fromage/issues/31
"""

import torch
from torch import nn

import frostline as fl

EXPECTED = {"embed.weight": "learns in part", "head.*": "frozen by plan"}


def make():
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "head": nn.Linear(4, 9)})
    plan = fl.train_only(model, {"embed.weight": fl.rows([7, 8])})
    ids = torch.arange(9)

    def loss_fn():
        return nn.functional.cross_entropy(model["head"](model["embed"](ids)), ids)

    return model, loss_fn, torch.optim.AdamW(plan.parameters())
