"""A norm written with `sqrt` meets a zero vector.

Seen: "Function 'SqrtBackward' returned nan values".
Fix: put the epsilon under the root.
Source: https://github.com/richzhang/PerceptualSimilarity/issues/69
"""

import torch
from torch import nn

EXPECTED = {"features.*": "not finite"}


def make():
    model, x = nn.ModuleDict({"features": nn.Conv1d(1, 4, 3)}), torch.zeros(2, 1, 6)
    nn.init.zeros_(model["features"].bias)

    def loss_fn():
        h = model["features"](x)
        norm = torch.sqrt((h**2).sum(1, keepdim=True))
        return (h / (norm + 1e-10)).sum()

    return model, loss_fn, torch.optim.Adam(model.parameters())
