"""Adam with decay, as `torch.optim.AdamW(fused=True)` to the last bit, without what comes with that class.

The classes of `torch.optim` import torch's compiler when one is made: 70 MB and most of a second, for nothing that is
used here. The function behind the class does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw


class AdamW:
    """The state of an Adam over `parameters`; one without a gradient is left alone by a step, its decay included.

    Attributes:
        means: Of each parameter its mean gradient, same shape.
        squares: Of each the mean square of its gradient, same shape.
        counts: Of each how many steps it made, float32, shape ().

    Cost: two copies of the parameters.

    Source: Loshchilov and Hutter, 2019.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self.means = [torch.zeros_like(parameter) for parameter in parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in parameters]
        self.counts = [torch.zeros((), device=parameter.device) for parameter in parameters]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move the parameters that have a gradient."""
        places = [place for place, parameter in enumerate(self._parameters) if parameter.grad is not None]
        weights: list[Tensor] = [self._parameters[place] for place in places]
        adamw(
            weights,
            [weight.grad for weight in weights if weight.grad is not None],
            [self.means[place] for place in places],
            [self.squares[place] for place in places],
            [],
            [self.counts[place] for place in places],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate,
            weight_decay=self._decay,
            eps=1e-8,
            maximize=False,
        )

    def forget_gradients(self) -> None:
        """Take every gradient away."""
        for parameter in self._parameters:
            parameter.grad = None
