"""Values averaged over the steps of training: steadier than those of any one step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """A running mean of parameters, in which a step's weight falls by `keep` with every step after it.

    Args:
        parameters: What to average, any shapes; a copy of each is held.
        keep: 0 (the last step alone) to below 1. Early on less is kept, so that the start is soon forgotten.

    Cost: a step is one pass over the parameters.

    Example:
        >>> weight = nn.Parameter(torch.tensor([0.0]))
        >>> average = Average([weight], keep=0.998)
        >>> for value in (11.0, 22.0):
        ...     _ = weight.data.fill_(value)
        ...     average.step()
        >>> average.values
        [tensor([18.7500])]
        >>> with average.in_place():
        ...     weight.item()
        18.75
        >>> weight.item()
        22.0

    Source: Polyak and Juditsky, 1992; the start is that of TensorFlow's `ExponentialMovingAverage` with `num_updates`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], keep: float) -> None:
        self._parameters = [parameter.detach() for parameter in parameters]
        self._keep = keep
        self.values = [parameter.clone() for parameter in self._parameters]
        self.steps = 0

    def step(self) -> None:
        """Take in the present values."""
        self.steps += 1
        keep = min(self._keep, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.values, self._parameters, 1 - keep)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the parameters have their averages inside, and their own values afterwards."""
        own = [parameter.clone() for parameter in self._parameters]
        _copy(self.values, self._parameters)
        try:
            yield
        finally:
            _copy(own, self._parameters)


def _copy(values: Sequence[Tensor], to: Sequence[Tensor]) -> None:
    for value, place in zip(values, to, strict=True):
        place.copy_(value)
