"""The text encoder runs inside `torch.no_grad()`, and its projection with it.

Seen: the loss stays higher than expected; the projection head never trains.
Fix: leave only what must stay fixed inside the block.
Source: https://github.com/edreisMD/ConVIRT-pytorch/issues/7
"""

import torch
from torch import nn

EXPECTED = {"text.*": "cut", "project.*": "cut", "image.*": "learns"}


def make():
    model = nn.ModuleDict({"text": nn.Linear(4, 4), "project": nn.Linear(4, 3), "image": nn.Linear(5, 3)})
    words, pixels = torch.randn(8, 4), torch.randn(8, 5)

    def loss_fn():
        with torch.no_grad():
            h = model["text"](words)  # <- text.*
            h = model["project"](h)  # <- project.*
        return -torch.cosine_similarity(h, model["image"](pixels)).mean()

    return model, loss_fn, torch.optim.Adam(model.parameters())
