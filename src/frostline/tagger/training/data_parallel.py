"""Processes that train one tagger together: each takes a part of every batch, and their gradients are added.

A step of a team is the step of one process over the whole batch, but for rounding and for the draws of dropout, so the
rates mean the same however many processes there are. Every process ends each step with the same bits; what dropout
draws in it follows from the seed, the step and the process, so that the first can write a checkpoint for all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from frostline.tagger.data.batches import Batch


class Team:
    """The processes of torch.distributed's group, or this one alone.

    Args:
        together: Take part in the group, which must have been initialised with a backend for the CPU, such as gloo.
    """

    def __init__(self, together: bool) -> None:
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)

    def draw_own(self, seed: int, step: int) -> None:
        """Let dropout draw something else in each process and step, whatever was drawn before."""
        if self.size > 1:
            torch.manual_seed(int(np.random.SeedSequence([seed, step, self.rank]).generate_state(1)[0]))

    def agree(self, number: int) -> bool:
        """Return, when every process is here, whether `number` is the same in all."""
        if self.size == 1:
            return True
        extremes = torch.tensor([number, -number])
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
        return int(extremes.sum()) == 0

    def part(self, batch: Batch) -> Batch:
        """Return the sentences of `batch` that this process takes: none, where there are fewer than processes."""
        return batch if self.size == 1 else batch.each(lambda numbers: numbers[self.rank :: self.size])

    def add_up(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Add the gradients of all processes, in place, and return the sum of their losses.

        Args:
            loss: Of this process's part, shape ().
            parameters: What has a gradient in some process; None counts as 0.

        Cost: one all-reduce of the size of `parameters`, and two copies.
        """
        if self.size == 1:
            return loss
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([loss.detach().reshape(1), *(gradient.flatten() for gradient in gradients)]).cpu()
        dist.all_reduce(flat)
        sums = flat[1:].to(loss.device).split([gradient.numel() for gradient in gradients])
        for parameter, total in zip(parameters, sums, strict=True):
            parameter.grad = total.view_as(parameter)
        return flat[0]
