"""Embeddings are requested as adapted modules, but silently stay frozen.

Seen: embed_tokens and lm_head keep every bit, and no warning says so.
Fix: train the rows themselves: `fl.add_tokens`, `fl.rows`, or PEFT's `modules_to_save`.
Source: https://github.com/unslothai/unsloth/issues/9326
"""

import torch
from torch import nn

EXPECTED = {"embed_tokens.*": "frozen", "q_proj.base.*": "frozen", "q_proj.lora_*": "learns", "lm_head.*": "frozen"}


class Adapted(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base
        self.lora_a = nn.Linear(4, 2, bias=False)
        self.lora_b = nn.Linear(2, 4, bias=False)

    def forward(self, h):
        return self.base(h) + self.lora_b(self.lora_a(h))


def make():
    model = nn.ModuleDict(
        {"embed_tokens": nn.Embedding(9, 4), "q_proj": nn.Linear(4, 4), "lm_head": nn.Linear(4, 9, bias=False)}
    )
    model.requires_grad_(False)
    targets = ["q_proj", "embed_tokens", "lm_head"]
    for name in targets:
        if isinstance(model[name], nn.Linear) and name != "lm_head":
            model[name] = Adapted(model[name])
    ids = torch.arange(9)

    def loss_fn():
        h = model["q_proj"](model["embed_tokens"](ids))
        return nn.functional.cross_entropy(model["lm_head"](h), ids.flip(0))

    return model, loss_fn, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
