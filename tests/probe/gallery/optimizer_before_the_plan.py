"""The optimizer is made before `train_only`, and holds the frozen part of a table of which rows are to learn.

Seen: with recipes that swap parameters, an optimizer that silently continues with the old ones.
Fix: make it after `train_only`, from `plan.parameters()`, or update it with `plan.carry(optimizer)`.
Source: https://github.com/NVIDIA/Megatron-LM/issues/174
"""

import torch
from torch import nn

import frostline as fl

EXPECTED = {"embed.weight": "not in optimizer", "head.*": "learns"}
REMARK = "The step raised StaleOptimizerError"
RAISES = fl.StaleOptimizerError


def make():
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "head": nn.Linear(4, 9)})
    optimizer = torch.optim.AdamW(model.parameters())
    fl.train_only(model, {"embed.weight": fl.rows([7, 8]), "head.*": fl.everything})
    ids = torch.arange(9)
    return model, lambda: nn.functional.cross_entropy(model["head"](model["embed"](ids)), ids), optimizer
