"""Data-parallel training: each process takes a part of every batch, and the gradients are summed.

A step of the group equals the step of a single process over the whole batch, but for rounding and for what dropout
draws, so the rates mean the same for any number of processes. Every process ends a step with the same bits. What
dropout draws follows from the seed, the step and the rank, so the first process can write a checkpoint for all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn


class DataParallelGroup:
    """The processes of torch.distributed's default group, or this process alone.

    Args:
        distributed: Use the group, which must have been initialised with a backend for CPU tensors, such as gloo.
    """

    def __init__(self, distributed: bool) -> None:
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)

    def seed_dropout(self, seed: int, step: int) -> None:
        """Seed the global generator differently in each process and step, whatever was drawn before."""
        if self.size > 1:
            torch.manual_seed(int(np.random.SeedSequence([seed, step, self.rank]).generate_state(1)[0]))

    def agree(self, value: int) -> bool:
        """Wait for every process; return whether `value` is the same in all of them."""
        if self.size == 1:
            return True
        extremes = torch.tensor([value, -value])
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
        return int(extremes.sum()) == 0

    def part(self, tensor: Tensor) -> Tensor:
        """Return the sentences (dimension 0) that this process takes: none, where there are fewer than processes."""
        return tensor if self.size == 1 else tensor[self.rank :: self.size]

    def sum_gradients(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Replace the gradients by their sums over all processes; return the sum of the losses.

        Args:
            loss: Loss of this process's part, shape ().
            parameters: Those that have a gradient in some process; None counts as 0.

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
