"""Reentrant checkpointing over frozen embeddings: no input requires grad, so nothing inside gets one.

Seen: "None of the inputs have requires_grad=True", then adapters whose gradients are all None.
Fix: `use_reentrant=False`, or `model.enable_input_require_grads()`.
Source: https://github.com/microsoft/LoRA/issues/120
"""

import warnings

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

EXPECTED = {"embed.*": "frozen", "block.*": "cut", "head.*": "learns"}


def make():
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "block": nn.Linear(4, 4), "head": nn.Linear(4, 9)})
    model["embed"].requires_grad_(False)
    ids = torch.arange(9)

    def loss_fn():
        h = model["embed"](ids)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            h = checkpoint(model["block"], h, use_reentrant=True)  # <- block.*
        return nn.functional.cross_entropy(model["head"](h), ids)

    return model, loss_fn, torch.optim.AdamW(model.parameters())
