"""Adam takes the steps of torch's, bit for bit, and brings no compiler with it."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from frostline.tagger.training.adam import AdamW


def test_every_step_is_that_of_torch_also_where_some_have_no_gradient() -> None:
    torch.manual_seed(0)
    ours, theirs = ([nn.Parameter(torch.randn(size)) for size in ((5, 3), (7,), (2, 2))] for _ in range(2))
    for one, other in zip(ours, theirs, strict=True):
        other.data.copy_(one.data)
    before = [weight.detach().clone() for weight in ours]
    one, other = AdamW(ours, 0.1), torch.optim.AdamW(theirs, weight_decay=0.1, fused=True)
    for step in range(6):
        rate = 0.01 / (1 + step)
        other.param_groups[0]["lr"] = rate
        one.forget_gradients()
        other.zero_grad()
        for place in {0, 1} if step % 2 else {0}:  # the last has none, ever
            gradient = torch.randn_like(ours[place])
            ours[place].grad, theirs[place].grad = gradient, gradient.clone()
        one.step(rate)
        other.step()
        assert all(torch.equal(mine, its) for mine, its in zip(ours, theirs, strict=True))
    assert [not torch.equal(weight, was) for weight, was in zip(ours, before, strict=True)] == [True, True, False]
    assert [float(count) for count in one.counts] == [6, 3, 0]


def test_training_does_not_import_the_compiler_of_torch() -> None:
    script = (
        "import sys, numpy; from frostline import tagger, vectors\n"
        "text = [(['a', 'b'], ['B-x', 'O'])]\n"
        "run = tagger.train(text, text, vectors.Vectors(['a'], numpy.ones((1, 4))), epochs=1)\n"
        "print(run.audit.learned_rows_moved, 'torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["2", "False"]
