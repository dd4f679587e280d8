"""The optimizer of the tagger: AdamW under a falling learning rate, and a moving average of the parameters.

The average is evaluated and saved: it varies less than the values of single steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from frostline.tagger.config import TaggerConfig


class EMA:
    """The exponential moving average of some parameters.

    Args:
        parameters: What to average, any shapes; a copy of each is held.
        decay: Weight of the average against the newest values, 0 (the last step alone) to 1. The first steps use less,
            so that the initial values are soon forgotten.

    Cost: a step is one pass over the parameters.

    Example:
        >>> weight = nn.Parameter(torch.tensor([0.0]))
        >>> ema = EMA([weight], decay=0.998)
        >>> for value in (11.0, 22.0):
        ...     _ = weight.data.fill_(value)
        ...     ema.step()
        >>> ema.values
        [tensor([18.7500])]
        >>> with ema.applied():
        ...     weight.item()
        18.75
        >>> weight.item()
        22.0

    Source: Polyak and Juditsky, 1992; the start is that of TensorFlow's `ExponentialMovingAverage` with `num_updates`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters = [parameter.detach() for parameter in parameters]
        self._decay = decay
        self.values = [parameter.clone() for parameter in self._parameters]
        self.steps = 0

    def step(self) -> None:
        """Update the averages with the current values of the parameters."""
        self.steps += 1
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.values, self._parameters, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the parameters their averages inside the block, and their own values back after it."""
        own = [parameter.clone() for parameter in self._parameters]
        _copy(self.values, self._parameters)
        try:
            yield
        finally:
            _copy(own, self._parameters)


class Optimizer:
    """Steps of AdamW: gradients clipped, learning rate falling linearly, parameters averaged.

    Args:
        parameters: What learns. A step leaves those without a gradient alone, weight decay included.
        config: Learning rate and how far it falls, weight decay, largest gradient norm and decay of the average.
        steps: Steps of the whole training.

    Attributes:
        ema: The moving average of the parameters.

    Cost: three copies of the parameters: two of AdamW, one of the average.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], config: TaggerConfig, steps: int) -> None:
        self.parameters = list(parameters)
        self.steps = steps
        self.ema = EMA(self.parameters, config.ema_decay)
        self._config = config
        self._adamw = _adamw(self.parameters, config.weight_decay)

    @property
    def steps_done(self) -> int:
        """How many steps were made."""
        return self.ema.steps

    def zero_grad(self) -> None:
        """Set every gradient to None."""
        self._adamw.zero_grad()

    def step(self, parameters: Sequence[nn.Parameter]) -> None:
        """Clip the gradients of `parameters`, those that this step trains, and update them and the average."""
        torch.nn.utils.clip_grad_norm_(parameters, self._config.max_grad_norm)
        fallen = (1 - self._config.final_rate) * self.steps_done / self.steps
        self._adamw.param_groups[0]["lr"] = self._config.learning_rate * (1 - fallen)
        self._adamw.step()
        self.ema.step()

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor that a step reads and changes, by name; not copies."""
        found: dict[str, Tensor] = {}
        for index, (parameter, average) in enumerate(zip(self.parameters, self.ema.values, strict=True)):
            found |= {f"parameter.{index}": parameter.detach(), f"ema.{index}": average}
            found |= {f"adamw.{index}.{name}": value for name, value in self._adamw.state[parameter].items()}
        return found


def _adamw(parameters: Sequence[nn.Parameter], weight_decay: float) -> torch.optim.AdamW:
    try:
        optimizer = torch.optim.AdamW(parameters, weight_decay=weight_decay, fused=True)
    except RuntimeError:  # the device has no fused kernel
        optimizer = torch.optim.AdamW(parameters, weight_decay=weight_decay)
    fused = optimizer.defaults["fused"]
    for parameter in parameters:  # now instead of at the first gradient: every checkpoint holds the same tensors
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device if fused else "cpu"),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


@torch.no_grad()
def _copy(values: Sequence[Tensor], to: Sequence[Tensor]) -> None:
    for value, target in zip(values, to, strict=True):
        target.copy_(value)
