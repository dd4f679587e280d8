"""Through numpy and back in the middle of the model.

Seen: only the layers after the round trip train.
Fix: write the step in torch; numpy records no gradient.
Source: https://github.com/delira-dev/delira/issues/40
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

EXPECTED = {"before.*": "cut", "after.*": "learns"}


def make():
    model = nn.ModuleDict({"before": nn.Linear(4, 4), "after": nn.Linear(4, 1)})
    x, y = torch.randn(8, 4), torch.randn(8, 1)

    def loss_fn():
        h = model["before"](x)
        h = np.tanh(h.detach().numpy())  # <- before.*
        return F.mse_loss(model["after"](torch.from_numpy(h)), y)

    return model, loss_fn, torch.optim.SGD(model.parameters(), lr=0.1)
