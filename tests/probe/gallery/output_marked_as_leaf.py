"""The encoder runs under `no_grad`, then its output is told to require grad.

Seen: no error in backward, and an encoder that never changes.
Fix: run the encoder with gradients, or leave it out of the optimizer if it must stay fixed.
Source: https://github.com/facebookresearch/DPR/issues/196
"""

import torch
from torch import nn

EXPECTED = {"question.*": "learns", "context.*": "cut"}


def make():
    model = nn.ModuleDict({"question": nn.Linear(4, 3), "context": nn.Linear(4, 3)})
    q, c = torch.randn(8, 4), torch.randn(8, 4)

    def loss_fn():
        with torch.no_grad():
            pooled = model["context"](c)  # <- context.*
        pooled.requires_grad_(True)
        scores = model["question"](q) @ pooled.t()
        return nn.functional.cross_entropy(scores, torch.arange(8))

    return model, loss_fn, torch.optim.Adam(model.parameters())
